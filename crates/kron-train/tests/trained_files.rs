//! Adapters, heads and inputs that do not belong to the model or the task are refused with the reason.

mod common;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use common::{config, data};
use kron_candle::{Adapter, IfExists, TrainedTensor};
use kron_train::config::{Method, Task};
use kron_train::data::{Dataset, Inputs, Tokenizer};
use kron_train::inference::TrainedModel;
use kron_train::model::{Files, Weights};
use kron_train::run::{OutputFolder, Stop, read_head, run};
use kron_train::{Config, Progress, Result};

/// Trains for an epoch; returns the path of the adapter with its head.
fn trained(config: &Config, out: &Path) -> PathBuf {
    let (weights, data) = common::load(config);
    let output = OutputFolder { path: out.into(), resume: false };
    run(config, &weights, &data, Some(&output), &Stop::default(), &Progress::Hidden).expect("it runs");
    assert!(!out.join("head.safetensors").exists(), "one file to carry");
    out.join("adapter.safetensors")
}

fn encoder() -> Config {
    let mut config = Config { model: data("models/bert"), ..config(Method::Kron) };
    (config.data.max_len, config.train.epochs) = (32, 1);
    config
}

fn model(config: &Config, adapter: Option<&Path>, head: Option<&Path>) -> Result<TrainedModel> {
    let files = Files::find(&config.model)?;
    let (weights, tokenizer) = (Weights::read(&files)?, Tokenizer::read(&files.tokenizer)?);
    TrainedModel::new(config, &weights, tokenizer, adapter, head)
}

fn predicted(model: &TrainedModel, path: &Path) -> Result<String> {
    model.predict(path)?.collect()
}

fn refused<T>(result: Result<T>, reason: &str) {
    let message = result.err().unwrap_or_else(|| panic!("taken in spite of {reason:?}")).to_string();
    assert!(message.contains(reason), "{message}\nwithout\n{reason}");
}

#[test]
fn files_of_another_model_or_task_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (decoder, encoder) = (config(Method::Kron), encoder());
    let adapter = trained(&decoder, &folder.path().join("decoder"));
    let other = trained(&encoder, &folder.path().join("encoder"));
    let [head, headless] = ["own-head", "headless"].map(|name| folder.path().join(name));
    write_head(&head, Some("[\"a\",\"b\"]"), 2, 0.5);
    without_head(&adapter).write(&headless, IfExists::Refuse).expect("room");
    refused(model(&decoder, Some(&other), Some(&adapter)), "matches no tensor");
    refused(model(&decoder, Some(&adapter), Some(&other)), "head.weight is F32 [7, ");
    refused(model(&decoder, Some(&adapter), Some(&headless)), "is not a head: it has no labels");
    refused(model(&decoder, Some(&head), Some(&head)), "is not an adapter");
    refused(model(&decoder, Some(&adapter), Some(&folder.path().join("none"))), "none");

    let examples = data("snips.test.jsonl");
    let needs = "the task classify needs a trained head, but ";
    refused(model(&decoder, None, None), &format!("{needs}none is given"));
    refused(model(&decoder, Some(&headless), None), &format!("{needs}{} holds none", headless.display()));
    let whole = model(&decoder, Some(&adapter), None).expect("its own files");
    let limited = whole.evaluate(&examples).expect("labels that it knows");
    assert_eq!(limited.examples, 28, "the limit of the settings");
    refused(whole.evaluate(&data("clinc.test.jsonl")), "which is not one of the training set's 7");
    let texts = model(&Config { task: Task::Lm, ..decoder }, Some(&adapter), None).expect("no head");
    refused(predicted(&texts, &examples), "have no answers to predict");

    let questions = folder.path().join("questions.jsonl");
    let choice = model(&Config { task: Task::Choice, ..config(Method::Kron) }, None, None).expect("a model");
    std::fs::write(&questions, "{\"q\": \"a\", \"choices\": [\"b\"]}\n{\"q\": \"a\", \"choices\": []}\n")
        .expect("written");
    refused(predicted(&choice, &questions), "line 2 has 0 choices, but a question has from 1 to 256");
    refused(choice.evaluate(&questions), "line 1 is malformed: missing field `answer`");
    std::fs::write(&questions, "{\"q\": \"a\", \"choices\": [\"b\", \"c\"]}\n").expect("written");
    let both = predicted(&choice, &questions).expect("a question");
    assert!(both.starts_with("{\"answer\":") && both.lines().count() == 1, "{both}");
    let choice = model(&Config { task: Task::Choice, ..encoder }, None, None).expect("a model");
    refused(predicted(&choice, &questions), "it is an encoder");
}

/// Reads an adapter without its head.
fn without_head(adapter: &Path) -> Adapter {
    let adapter = Adapter::read(adapter).expect("an adapter");
    assert_eq!(adapter.trained_summary().expect("a head"), "head.bias and 1 more");
    let plain = adapter.with_trained_tensors(Vec::new()).and_then(|a| a.with_metadata(Default::default()));
    plain.expect("an adapter alone")
}

/// Changes an adapter's head in one respect at a time.
#[test]
fn a_head_in_an_adapter_belongs_to_the_model_and_has_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, file) = (config(Method::Kron), folder.path().join("changed"));
    let whole = Adapter::read(trained(&config, &folder.path().join("run"))).expect("an adapter");
    let head = |labels: Option<&str>, rows: usize, width: usize| {
        let tensor = |name, shape: &[usize]| {
            TrainedTensor::new(name, shape, vec![0.5; shape.iter().product()]).expect("a tensor")
        };
        let metadata = labels.map(|text| (Adapter::LABELS_KEY.to_owned(), text.to_owned()));
        let tensors = vec![tensor("head.weight", &[rows, width]), tensor("head.bias", &[rows])];
        let changed = whole.clone().with_metadata(metadata.into_iter().collect());
        let changed = changed.and_then(|adapter| adapter.with_trained_tensors(tensors)).expect("an adapter");
        changed.write(&file, IfExists::Replace).expect("room");
        model(&config, Some(&file), None)
    };
    head(Some("[\"a\",\"b\"]"), 2, 64).expect("a head");
    refused(head(None, 2, 64), "has a head, but no labels of it");
    refused(head(Some("[\"a\",\"b\"]"), 3, 64), "head.weight is [3, 64], but [2, 64] was expected");
    refused(head(Some("[\"a\",\"b\"]"), 2, 63), "head.weight is [2, 63], but [2, 64] was expected");
    refused(head(Some("[\"b\",\"a\"]"), 2, 64), "labels that are not sorted");
    refused(head(Some("a\nb"), 2, 64), "has labels that are not a JSON list of texts: ");
    let weights = Weights::read(&Files::find(&config.model).expect("a model")).expect("weights");
    refused(read_head(&file, &weights), "has labels that are not a JSON list of texts: ");
}

/// PEFT's configuration names the model that an adapter is for.
#[test]
fn an_adapter_names_the_folder_of_its_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = |config: &Config, out: &str| {
        let adapter = Adapter::read(trained(config, &folder.path().join(out))).expect("an adapter");
        adapter.metadata().get("base_model_name_or_path").cloned()
    };
    let encoder = encoder();
    assert_eq!(name(&encoder, "folder").as_deref(), encoder.model.to_str());
    assert_eq!(name(&config(Method::Kron), "file"), None);
}

/// Takes the special tokens from a tokenizer that drops control characters.
#[test]
fn a_text_without_a_token_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, texts] = ["tokenizer.json", "texts.jsonl"].map(|name| folder.path().join(name));
    let text = std::fs::read_to_string(data("models/bert/tokenizer.json")).expect("a fixture");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json["post_processor"] = serde_json::Value::Null;
    std::fs::write(&file, json.to_string()).expect("written");
    let tokenizer = Tokenizer::read(&file).expect("a tokenizer");
    std::fs::write(&texts, "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"\\u0001\", \"label\": 1}\n")
        .expect("written");
    let mut config = encoder();
    (config.data.train, config.data.validation) = (texts.clone(), None);
    let reason = "line 2 has a text of no token, but a text has at least one";
    refused(Dataset::read(&config, &tokenizer), reason);
    refused(Inputs::read(&texts, Task::Classify, 8, &tokenizer), reason);
}

/// Writes a head with equal values, for the small decoder.
fn write_head(path: &Path, labels: Option<&str>, rows: usize, value: f32) {
    let tensor = |shape: &[usize]| Tensor::full(value, shape, &Device::Cpu).expect("memory");
    let tensors = [("head.weight", tensor(&[rows, 64])), ("head.bias", tensor(&[rows]))];
    let metadata = labels.map(|text| [("labels".to_owned(), text.to_owned())].into());
    let bytes = safetensors::serialize(tensors, metadata).expect("a file");
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn a_head_has_sorted_labels_and_finite_values() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("head.safetensors");
    let weights = Weights::read(&Files::find(&data("stories260K.bin")).expect("a model")).expect("weights");
    let read = |labels, rows, value| {
        write_head(&path, labels, rows, value);
        read_head(&path, &weights).map(|(_, labels)| labels)
    };
    assert_eq!(read(Some("[\"a\\nb\",\"c\"]"), 2, 0.5).expect("a head"), ["a\nb", "c"]);
    assert_eq!(read(Some("a\nb\nc"), 3, 0.5).expect("an earlier head"), ["a", "b", "c"]);
    refused(read(None, 2, 0.5), "is not a head: it has no labels");
    refused(read(Some("[\"a\",\"b\"]"), 3, 0.5), "head.weight is F32 [3, 64], but F32 [2, 64] was expected");
    refused(read(Some("[\"b\",\"a\"]"), 2, 0.5), "labels that are not sorted");
    refused(read(Some("[\"a\",\"a\"]"), 2, 0.5), "or one label twice");
    refused(read(Some("[\"a\",\"b\"]"), 2, f32::NAN), "has NaN in head.weight");
    refused(read(Some("[\"a\",\"b\"]"), 2, f32::INFINITY), "has inf in head.weight");
}

/// Gives the head values so large that its logits are infinite.
#[test]
fn a_result_that_is_not_finite_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let [head, examples] = ["head.safetensors", "examples.jsonl"].map(|name| folder.path().join(name));
    write_head(&head, Some("[\"a\",\"b\"]"), 2, 3e38);
    std::fs::write(&examples, "{\"text\": \"Once upon a time\", \"label\": \"a\"}\n").expect("written");
    let model = model(&config(Method::Kron), None, Some(&head)).expect("a head");
    refused(model.evaluate(&examples), "under this model, but a loss is finite");
    refused(predicted(&model, &examples), "line 1 has a score that is NaN or infinite");
}
