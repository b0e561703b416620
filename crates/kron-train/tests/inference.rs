//! A trained model evaluates as its run did, from every form of its adapter, and its predictions are those that an
//! evaluation counts.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use common::{config, data};
use kron_adapter::peft::LoraOptions;
use kron_candle::{Adapter, IfExists, OutputFormat, TrainedTensor};
use kron_train::config::{Method, Task};
use kron_train::run::{Outcome, OutputFolder, Stop, run};
use kron_train::{Config, Progress};
use serde_json::Value;

/// Finished run with its settings.
struct Run {
    folder: tempfile::TempDir,
    config: Config,
    outcome: Outcome,
}

impl Run {
    /// Trains, and leaves the files of the run in `run`.
    fn new(config: Config) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (weights, data) = common::load(&config);
        let output = OutputFolder { path: folder.path().join("run"), resume: false };
        let outcome = run(&config, &weights, &data, Some(&output), &Stop::default(), &Progress::Hidden);
        Self { folder, outcome: outcome.expect("it runs"), config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a command on the model with the settings of the run.
    fn command(&self, name: &str, adapter: Option<&Path>, examples: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kron-train"));
        command.arg(name).arg(&self.config.model).arg("--config").arg(self.path("run/config.toml"));
        adapter.map(|path| command.arg("--adapter").arg(path));
        command.arg("--data").arg(examples);
        command
    }

    fn adapter(&self) -> PathBuf {
        self.path("run/adapter.safetensors")
    }

    /// Evaluates the validation set with an adapter, and with the head of another file.
    fn evaluation(&self, adapter: Option<&Path>, head: Option<&Path>) -> Value {
        let examples = self.config.data.validation.as_ref().expect("a validation set");
        let mut command = self.command("eval", adapter, examples);
        head.map(|path| command.arg("--head").arg(path));
        lines(&command.output().expect("it starts")).remove(0)
    }

    /// Predicts with the run's own adapter.
    fn predictions(&self, examples: &Path, more: &[&str]) -> Vec<Value> {
        let mut command = self.command("predict", Some(&self.adapter()), examples);
        lines(&command.args(more).output().expect("it starts"))
    }
}

/// Parses the standard output of a command that succeeded.
fn lines(ended: &Output) -> Vec<Value> {
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = std::str::from_utf8(&ended.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Settings for multiple choice, with a file of questions of three lengths.
fn choice(folder: &Path) -> Config {
    let file = folder.join("choice.jsonl");
    let choices = ["a stone", "very happy", "not here"];
    let row = |i: usize| {
        let (name, more) = (["Tom", "Lily", "Ben"][i % 3], " and happy".repeat(i % 4));
        serde_json::json!({
            "q": format!("{name} is happy{more}. What is {name}?"),
            "choices": choices[..2 + i % 2],
            "answer": i % 2,
        })
    };
    let rows: Vec<String> = (0..24).map(|i| row(i).to_string() + "\n").collect();
    std::fs::write(&file, rows.concat()).expect("written");
    let mut config = Config { task: Task::Choice, ..config(Method::Kron) };
    (config.data.train, config.data.validation) = (file.clone(), Some(file));
    config
}

/// Settings for the small encoder.
fn encoder() -> Config {
    let mut config = Config { model: data("models/bert"), ..config(Method::Lokr) };
    (config.data.max_len, config.adapter.rank) = (32, 2);
    config
}

#[test]
fn an_evaluation_is_that_of_the_run() {
    let questions = tempfile::tempdir().expect("a folder");
    let mut text = config(Method::Lora);
    (text.task, text.data.max_len) = (Task::Lm, 16);
    let (mut sum, mut of_encoder) = (config(Method::Kron), encoder());
    (sum.adapter.terms, of_encoder.adapter.terms, of_encoder.adapter.method) = (3, 2, Method::Kron);
    for mut config in [config(Method::Kron), encoder(), choice(questions.path()), text, sum, of_encoder] {
        config.data.limit_eval = 0;
        let run = Run::new(config);
        let score = run.outcome.validation.expect("a score");
        let got = run.evaluation(Some(&run.adapter()), None);
        assert_eq!(number(&got["loss"]), score.loss, "{got}");
        assert_eq!(got.get("accuracy").map(number), score.accuracy, "{got}");
        let head = Some(run.adapter()).filter(|_| run.config.task == Task::Classify);
        assert_ne!(run.evaluation(None, head.as_deref())["loss"], got["loss"], "the adapter has an effect");
    }
}

/// Writes an adapter in every format; all but LoRA copy its factors, and the head stays in its own file.
#[test]
fn an_adapter_is_read_in_every_format() {
    // Small enough factors that one of them is a product, in which LyCORIS keeps the scale.
    let mut decoder = config(Method::Lokr);
    decoder.adapter.factor = 4;
    for config in [decoder, encoder()] {
        let run = Run::new(config);
        let own = number(&run.evaluation(Some(&run.adapter()), None)["loss"]);
        let adapter = Adapter::read(run.adapter()).expect("an adapter");
        for (name, to, exact) in [
            ("lokr", OutputFormat::PeftLokr, true),
            ("lycoris.safetensors", OutputFormat::Lycoris, true),
            ("lora", OutputFormat::Lora(LoraOptions::default()), false),
        ] {
            let path = run.path(name);
            kron_adapter::write(&adapter, to, &path, IfExists::Refuse).expect(name);
            let left = to.left_out(&adapter);
            assert_eq!(left.iter().map(|left| left.tensors.len()).sum::<usize>(), 2, "{name}");
            let head = Some(run.adapter());
            let loss = number(&run.evaluation(Some(&path), head.as_deref())["loss"]);
            // A LoRA's products are rounded once more to 24 bits, over a few hundred terms.
            let near = if exact { 0.0 } else { 1e-5 };
            assert!((loss / own - 1.0).abs() <= near, "{name}: {loss}, not {own}");
        }
    }
}

/// Takes an adapter and its head apart, as runs wrote them once.
#[test]
fn a_head_beside_its_adapter_is_found() {
    let run = Run::new(config(Method::Kron));
    let want = run.evaluation(Some(&run.adapter()), None);
    let (alone, head) = (run.path("adapter.safetensors"), run.path("head.safetensors"));
    let whole = Adapter::read(run.adapter()).expect("an adapter");
    whole
        .clone()
        .with_trained_tensors(Vec::new())
        .expect("layers")
        .write(&alone, IfExists::Refuse)
        .expect("room");
    let tensors = whole.trained_tensors().iter().map(|tensor| {
        let shape = tensor.shape().to_vec();
        (tensor.name(), Tensor::from_vec(tensor.values().to_vec(), shape, &Device::Cpu).expect("a tensor"))
    });
    let labels = [("labels".to_owned(), whole.metadata()["labels"].clone())].into();
    let bytes = safetensors::serialize(tensors, Some(labels)).expect("a file");
    std::fs::write(&head, bytes).expect("room");
    assert_eq!(run.evaluation(Some(&alone), None), want);
    // The adapter's own head comes first, and a given one before it.
    let other = whole.trained_tensors().iter().map(|tensor| {
        TrainedTensor::new(tensor.name(), tensor.shape(), vec![0.0; tensor.values().len()]).expect("a tensor")
    });
    let other = whole.clone().with_trained_tensors(other.collect()).expect("layers");
    other.write(&alone, IfExists::Replace).expect("room");
    assert_ne!(run.evaluation(Some(&alone), None)["loss"], want["loss"]);
    assert_eq!(run.evaluation(Some(&alone), Some(&head)), want);
}

/// Predicts the labels of texts, in batches of one, so that there are several groups of batches.
#[test]
fn predicted_labels_are_those_that_an_evaluation_counts() {
    let mut config = config(Method::Kron);
    config.data.limit_eval = 0;
    let run = Run::new(config);
    let examples = std::fs::read_to_string(data("snips.test.jsonl")).expect("a fixture");
    let rows: Vec<Value> = examples.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let texts = |rows: &mut dyn Iterator<Item = &Value>| {
        let path = run.path("texts.jsonl");
        let lines = rows.map(|row| serde_json::json!({ "text": row["text"] }).to_string() + "\n");
        std::fs::write(&path, lines.collect::<String>()).expect("written");
        path
    };
    let got = run.predictions(&texts(&mut rows.iter()), &["--batch", "1"]);
    assert_eq!(got.len(), 280);
    let (mut right, mut loss) = (0, 0.0);
    for (got, row) in got.iter().zip(&rows) {
        let scores = got["scores"].as_object().expect("scores");
        assert!(scores.len() == 7 && (scores.values().map(number).sum::<f64>() - 1.0).abs() < 1e-6, "{got}");
        let best = scores.values().map(number).fold(0.0, f64::max);
        assert_eq!(number(&scores[got["label"].as_str().expect("a label")]), best);
        right += usize::from(got["label"] == row["label"]);
        loss -= number(&scores[row["label"].as_str().expect("a label")]).ln() / rows.len() as f64;
    }
    let score = run.outcome.validation.expect("a score");
    assert_eq!(right as f64 / rows.len() as f64, score.accuracy.expect("an accuracy"));
    assert!((loss / score.loss - 1.0).abs() < 1e-5 && loss > 0.1, "{loss}, not {}", score.loss);
    // The order is that of the file, whatever the lengths.
    let reversed = run.predictions(&texts(&mut rows.iter().rev()), &["--batch", "1"]);
    assert!(reversed.iter().rev().eq(&got));
}

#[test]
fn predicted_answers_are_those_that_an_evaluation_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = Run::new(choice(folder.path()));
    let text = std::fs::read_to_string(&run.config.data.train).expect("questions");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    // Without the answers, in a new file.
    let asked = run.path("asked.jsonl");
    let asks =
        rows.iter().map(|row| serde_json::json!({ "q": row["q"], "choices": row["choices"] }).to_string());
    std::fs::write(&asked, asks.map(|line| line + "\n").collect::<String>()).expect("written");
    let got = run.predictions(&asked, &[]);
    assert_eq!(got.len(), rows.len());
    let (mut right, mut loss) = (0, 0.0);
    for (got, row) in got.iter().zip(&rows) {
        let scores: Vec<f64> = got["scores"].as_array().expect("scores").iter().map(number).collect();
        assert_eq!(scores.len(), row["choices"].as_array().expect("choices").len());
        let [answer, predicted] = [row, got].map(|line| line["answer"].as_u64().expect("an index") as usize);
        assert_eq!(scores[predicted], scores.iter().copied().fold(f64::MIN, f64::max), "{got}");
        right += usize::from(predicted == answer);
        loss += (scores.iter().map(|s| s.exp()).sum::<f64>().ln() - scores[answer]) / rows.len() as f64;
    }
    let score = run.outcome.validation.expect("a score");
    assert_eq!(right as f64 / rows.len() as f64, score.accuracy.expect("an accuracy"));
    assert!((loss / score.loss - 1.0).abs() < 1e-5 && loss > 1e-3, "{loss}, not {}", score.loss);
}

#[test]
fn a_result_goes_into_a_new_file() {
    let run = Run::new(config(Method::Head));
    let head = run.path("run/head.safetensors");
    for name in ["eval", "predict"] {
        let out = run.path(name);
        let start = |out: Option<&Path>| {
            let mut command = run.command(name, None, &data("snips.test.jsonl"));
            command.arg("--head").arg(&head);
            out.map(|out| command.arg("--out").arg(out));
            command.output().expect("it starts")
        };
        let printed = start(None);
        let written = start(Some(&out));
        assert!(written.status.success() && written.stdout.is_empty());
        let bytes = std::fs::read(&out).expect("a result");
        assert!(bytes == printed.stdout && bytes.ends_with(b"}\n"));
        let again = start(Some(&out));
        assert_eq!(again.status.code(), Some(1), "{name}");
        assert_eq!(std::fs::read(&out).expect("the first result"), bytes);
        // A failure leaves nothing.
        let none = run.path("none");
        let mut command = run.command(name, None, &head);
        assert_eq!(command.arg("--out").arg(&none).output().expect("it starts").status.code(), Some(1));
        assert!(!none.exists());
    }
}
