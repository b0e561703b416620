//! Tensors trained beside the factors: taken from `modules_to_save`, carried along, and written back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kron_adapter::{Adapter, IfExists, TrainedTensor};
use kron_core::{KronShape, LayerDims};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapters::{config, convert, dir, peft, refused, report, run, same, tensors};
use crate::golden::{File, Tensor, golden, serialize};
use crate::models;

const PREFIX: &str = "base_model.model.";

/// Copies a golden PEFT folder, with these modules to save and these tensors of them.
pub fn folder(name: &str, modules: Value, saved: &[(&str, Tensor)]) -> TempDir {
    let to = dir();
    let mut fields = config(&peft(name));
    fields["modules_to_save"] = modules;
    std::fs::write(to.path().join("adapter_config.json"), fields.to_string()).unwrap();
    let mut file = tensors(&peft(name).join("adapter_model.safetensors"));
    for (name, t) in saved {
        let copy = Tensor { dtype: t.dtype, shape: t.shape.clone(), bytes: t.bytes.clone() };
        file.insert(format!("{PREFIX}{name}"), copy);
    }
    std::fs::write(to.path().join("adapter_model.safetensors"), serialize(&file)).unwrap();
    to
}

/// Returns a head of 3 classes: a weight and a bias.
pub fn head() -> [(&'static str, Tensor); 2] {
    let tensor = |shape: &[usize], seed| models::tensor(Dtype::F32, shape, seed);
    [("score.weight", tensor(&[3, 8], 1)), ("score.bias", tensor(&[3], 2))]
}

fn weights(folder: &Path) -> File {
    tensors(&folder.join("adapter_model.safetensors"))
}

pub fn notes(report: &Value) -> Vec<&str> {
    report["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect()
}

/// Converts a folder with a head to our file.
pub fn ours(name: &str, out: &Path) -> PathBuf {
    let (from, file) = (folder(name, json!(["score"]), &head()), out.join(format!("{name}.safetensors")));
    assert_eq!(notes(&convert(from.path(), &file, "kron")), Vec::<&str>::new());
    file
}

#[test]
fn the_modules_of_a_peft_folder_come_back_with_their_bits() {
    for (name, to) in [("lora", "lora"), ("lora_rs", "lora"), ("lokr", "peft-lokr"), ("lokr", "lora")] {
        let out = dir();
        let (file, back) = (ours(name, out.path()), out.path().join("back"));
        let adapter = Adapter::read(&file).unwrap();
        for (name, tensor) in head() {
            let read = adapter.trained_tensor(name).unwrap();
            let bytes: Vec<u8> = read.values().iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!((read.shape(), bytes), (&tensor.shape[..], tensor.bytes), "{name}");
        }
        convert(&file, &back, to);
        assert_eq!(config(&back)["modules_to_save"], json!(["score"]));
        let written = weights(&back);
        for (name, tensor) in head() {
            let got = &written[&format!("{PREFIX}{name}")];
            assert_eq!((got.dtype, &got.shape, &got.bytes), (Dtype::F32, &tensor.shape, &tensor.bytes));
        }
        if to != "lora" || name != "lokr" {
            same(&written, &weights(folder(name, json!(["score"]), &head()).path()));
        }
    }
    // Without trained tensors everything is as it was.
    let out = dir();
    convert(&peft("lora"), &out.path().join("lora"), "lora");
    assert_eq!(config(&out.path().join("lora"))["modules_to_save"], json!(null));
    convert(&peft("lora"), &out.path().join("file"), "kron");
    assert!(
        String::from_utf8_lossy(&std::fs::read(out.path().join("file")).unwrap()).contains(r#"version\":1"#)
    );
}

#[test]
fn values_of_other_types_are_exact_in_float32() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        let weight = models::tensor(dtype, &[2, 3, 2], 5);
        let want = models::values(&weight);
        let (from, out) = (folder("lora", json!(["norm"]), &[("model.norm.weight", weight)]), dir());
        let file = out.path().join("file");
        convert(from.path(), &file, "kron");
        let adapter = Adapter::read(&file).unwrap();
        let [read] = adapter.trained_tensors() else { panic!("one tensor") };
        let got: Vec<f64> = read.values().iter().map(|v| f64::from(*v)).collect();
        assert_eq!((read.name(), read.shape(), got), ("model.norm.weight", &[2, 3, 2][..], want));
    }
}

/// PEFT saves a whole classifier for a task that classifies, and no module inside it.
#[test]
fn modules_inside_a_classifier_are_saved_with_it() {
    let saved = ["classifier.dense.weight", "classifier.out_proj.weight", "model.norm.weight"]
        .map(|name| (name, models::tensor(Dtype::F32, &[4, 4], 3)));
    let modules = json!(["classifier", "score", "model.norm"]);
    for (task, want) in [
        ("SEQ_CLS", json!(["classifier", "model.norm"])),
        ("CAUSAL_LM", json!(["classifier.dense", "classifier.out_proj", "model.norm"])),
    ] {
        let from = folder("lora", modules.clone(), &saved);
        let path = from.path().join("adapter_config.json");
        let mut fields = config(from.path());
        fields["task_type"] = task.into();
        fields["base_model_name_or_path"] = "a/model".into();
        std::fs::write(path, fields.to_string()).unwrap();
        let out = dir();
        let (file, back) = (out.path().join("file"), out.path().join("back"));
        convert(from.path(), &file, "kron");
        convert(&file, &back, "lora");
        let written = config(&back);
        assert_eq!(written["modules_to_save"], want);
        assert_eq!(
            (&written["task_type"], &written["base_model_name_or_path"]),
            (&json!(task), &json!("a/model"))
        );
        same(&weights(&back), &weights(from.path()));
    }
}

/// The names of the classes stand in the metadata of the weights, after `format`, in every run.
#[test]
fn the_names_of_the_classes_go_along() {
    let out = dir();
    let file = ours("lokr", out.path());
    let adapter = Adapter::read(&file).unwrap();
    let labels = "[\"a\\n\\\"b\\\"\",\"ü\"]";
    let mut metadata = adapter.metadata().clone();
    metadata.insert(Adapter::LABELS_KEY.into(), labels.into());
    let adapter = adapter.with_metadata(metadata).unwrap();
    adapter.write(&file, IfExists::Replace).unwrap();
    for to in ["lora", "peft-lokr"] {
        let (back, again) = (out.path().join(to), out.path().join(format!("{to}-again")));
        convert(&file, &back, to);
        convert(&file, &again, to);
        let bytes = std::fs::read(back.join("adapter_model.safetensors")).unwrap();
        assert!(bytes == std::fs::read(again.join("adapter_model.safetensors")).unwrap(), "equal bytes");
        let (len, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let want = BTreeMap::from([("format".into(), "pt".into()), ("labels".into(), labels.to_string())]);
        assert_eq!(
            (header.metadata().clone().unwrap().into_iter().collect::<BTreeMap<_, _>>(), len % 8),
            (want, 0)
        );
        let read = kron_adapter::read(&back).unwrap().adapter;
        assert_eq!(
            (read.metadata(), read.trained_tensors()),
            (adapter.metadata(), adapter.trained_tensors())
        );
    }
}

/// PEFT would take a decoder's `lm_head` for the module `head`, and the folder would not load.
#[test]
fn a_peft_folder_does_not_take_the_trainer_s_head() {
    let (out, labels) = (dir(), Adapter::LABELS_KEY);
    let plain = Adapter::read(ours("lokr", out.path())).unwrap();
    let file = |name: &str, labelled: bool, names: &[&str]| {
        let path = out.path().join(name);
        let tensors = names.iter().map(|name| TrainedTensor::new(*name, [2], vec![0.5, 1.0]).unwrap());
        let labels = labelled.then(|| (labels.to_string(), "[\"a\",\"b\"]".to_string()));
        let adapter = plain.clone().with_metadata(labels.into_iter().collect()).unwrap();
        let adapter = adapter.with_trained_tensors(tensors.collect()).unwrap();
        adapter.write(&path, IfExists::Refuse).unwrap();
        path
    };
    let head = file("head", true, &["head.weight", "head.bias"]);
    let both = file("both", true, &["head.weight", "head.bias", "score.bias", "score.weight"]);
    // Without the names of classes it is a module of the model's.
    let other = file("other", false, &["head.weight"]);
    let nested = file("nested", true, &["a.head.weight", "head.a.weight"]);
    let why = "and not the head that kron-train trained, so these trained tensors would be lost: head.bias and 1 more";
    let head_s = ["head.bias", "head.weight"];
    for to in ["lora", "peft-lokr"] {
        for (from, left_out, saved, labelled) in [
            (&head, &head_s[..], json!(null), false),
            (&both, &head_s, json!(["score"]), true),
            (&other, &[], json!(["head"]), false),
            (&nested, &[], json!(["a.head", "head.a"]), true),
        ] {
            let folder = from.with_extension(to);
            if !left_out.is_empty() {
                refused(&[&"convert", from, &folder, &"--to", &to], 1, &[why, "--factors-only"]);
            }
            let converted = report(&[&"convert", from, &folder, &"--to", &to, &"--factors-only"]);
            assert_eq!(converted["left_out"], json!(left_out), "{from:?}");
            assert_eq!(config(&folder)["modules_to_save"], saved, "{from:?}");
            let read = kron_adapter::read(&folder).unwrap();
            let whole = Adapter::read(from).unwrap();
            let kept = whole.trained_tensors().iter();
            let kept = kept.filter(|tensor| left_out.is_empty() || !tensor.name().starts_with("head."));
            assert!(kept.eq(read.adapter.trained_tensors()), "{from:?}");
            assert_eq!(read.adapter.metadata().contains_key(labels), labelled, "{from:?}");
        }
    }
    // Our file keeps it.
    let copy = out.path().join("copy");
    assert_eq!(notes(&convert(&head, &copy, "kron")), Vec::<&str>::new());
    assert!(std::fs::read(&head).unwrap() == std::fs::read(&copy).unwrap());
}

#[test]
fn inspect_counts_them() {
    let (out, page) = (dir(), "page.html");
    let (file, page) = (ours("lokr", out.path()), out.path().join(page));
    let counted = report(&[&"inspect", &file, &"--html", &page]);
    let want = json!([
        { "name": "score.bias", "shape": [3], "params": 3 },
        { "name": "score.weight", "shape": [3, 8], "params": 24 },
    ]);
    assert_eq!(counted["trained_tensors"], want);
    let without = report(&[&"inspect", &peft("lokr")]);
    assert_eq!((&without["trained_tensors"], &without["params"]), (&json!([]), &counted["params"]));
    let (_, text, _) = run(&[&"inspect", &file]);
    assert!(text.contains("parameters; trained tensors beside them: 2, 27 parameters\n"), "{text}");
    assert!(text.lines().any(|line| line.split_whitespace().eq(["score.weight", "3×8", "24"])), "{text}");
    assert!(std::fs::read_to_string(page).unwrap().contains("score.weight"));
}

#[test]
fn lycoris_holds_factors_alone() {
    let out = dir();
    let (file, lycoris) = (ours("lokr", out.path()), out.path().join("lycoris"));
    let why = "LyCORIS holds factors alone, so these trained tensors would be lost: score.bias and 1 more";
    refused(&[&"convert", &file, &lycoris, &"--to", &"lycoris"], 1, &[why, "--factors-only"]);
    let converted = report(&[&"convert", &file, &lycoris, &"--to", &"lycoris", &"--factors-only"]);
    assert_eq!(converted["left_out"], json!(["score.bias", "score.weight"]));
    let (plain, same_file) = (out.path().join("plain"), out.path().join("same"));
    convert(&peft("lokr"), &plain, "kron");
    assert_eq!(notes(&convert(&plain, &same_file, "lycoris")), Vec::<&str>::new());
    same(&tensors(&lycoris), &tensors(&same_file));
}

#[test]
fn a_gguf_lora_holds_factors_alone() {
    let out = dir();
    let [plain, with, lora, want] =
        ["plain.safetensors", "with.safetensors", "lora.gguf", "want.gguf"].map(|name| out.path().join(name));
    let shape = KronShape::lora(LayerDims { d_out: 32, d_in: 32 }, 3).unwrap();
    let adapter = crate::adapters::ours(
        &[("model.layers.0.self_attn.q_proj", shape, crate::adapters::scaling(6.0, 3))],
        &plain,
    );
    let bias = TrainedTensor::new("score.bias", [3], vec![0.5; 3]).unwrap();
    adapter.with_trained_tensors(vec![bias]).unwrap().write(&with, IfExists::Refuse).unwrap();
    let model = golden().join("tiny_llama.gguf");
    let gguf = |from: &Path, to: &Path| {
        let call: [&dyn AsRef<std::ffi::OsStr>; 8] =
            [&"convert", &from, &to, &"--to", &"gguf-lora", &"--base", &model, &"--factors-only"];
        report(&call)["left_out"].clone()
    };
    assert_eq!((gguf(&with, &lora), gguf(&plain, &want)), (json!(["score.bias"]), json!([])));
    let call: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"convert", &with, &lora, &"--to", &"gguf-lora", &"--base", &model];
    refused(&call, 1, &["a GGUF LoRA holds factors alone", "score.bias", "--factors-only"]);
    assert!(std::fs::read(&lora).unwrap() == std::fs::read(&want).unwrap());
}

#[test]
fn quantise_and_fit_keep_them_and_diff_compares_them() {
    let out = dir();
    let (file, rounded) = (ours("lokr", out.path()), out.path().join("rounded"));
    let measured = report(&[&"quantise", &file, &"--bits", &"4", &"--out", &rounded]);
    assert_eq!(
        notes(&measured),
        ["tensors trained beside the factors stay as they are: score.bias and 1 more"]
    );
    let (before, after) = (Adapter::read(&file).unwrap(), Adapter::read(&rounded).unwrap());
    assert_eq!(before.trained_tensors(), after.trained_tensors());
    assert_ne!(before.layers(), after.layers());

    let (lora, fit) = (ours("lora", out.path()), out.path().join("fit"));
    let size = ["--fit", "--a-out", "2", "--a-in", "2", "--rank", "4", "--max-error", "9"];
    let (code, _, err) =
        models::run(["convert", lora.to_str().unwrap(), fit.to_str().unwrap()].into_iter().chain(size));
    assert_eq!(code, 0, "{err}");
    assert_eq!(Adapter::read(&fit).unwrap().trained_tensors(), before.trained_tensors());

    let compared = |other: &Path| {
        let report = report(&[&"diff", &file, &other]);
        notes(&report).join("; ")
    };
    let of = "the tensors trained beside the factors";
    assert_eq!(compared(&rounded), format!("{of}, 2, are equal in both adapters"));
    assert_eq!(compared(&peft("lokr")), format!("{of}, 2, differ in score.bias and 1 more"));
    let bias = TrainedTensor::new("score.bias", [3], vec![0.0, 1.0, 2.0]).unwrap();
    let changed = vec![bias, before.trained_tensor("score.weight").unwrap().clone()];
    before.clone().with_trained_tensors(changed).unwrap().write(&rounded, IfExists::Replace).unwrap();
    assert_eq!(compared(&rounded), format!("{of}, 2, differ in score.bias"));
}

#[test]
fn tensors_that_cannot_be_carried_are_refused() {
    let f32 = |shape: &[usize]| models::tensor(Dtype::F32, shape, 7);
    let with = |dtype, shape: &[usize], bytes: Vec<u8>| Tensor { dtype, shape: shape.to_vec(), bytes };
    let score = json!(["score"]);
    let q = "model.layers.0.self_attn.q_proj";
    for (modules, name, tensor, says) in [
        (score.clone(), "other.weight", f32(&[2]), "lies in no module in modules_to_save"),
        (json!([""]), "score.weight", f32(&[2]), "lies in no module in modules_to_save"),
        (json!("score"), "score.weight", f32(&[2]), "not an adapter's configuration"),
        (json!([q]), &format!("{q}.weight")[..], f32(&[2]), "which has a layer"),
        (score.clone(), "score.steps", with(Dtype::I64, &[], vec![0; 8]), "is I64, but values are"),
        (
            score.clone(),
            "score.weight",
            with(Dtype::F64, &[1], 0.1f64.to_le_bytes().into()),
            "does not hold exactly",
        ),
        (
            score.clone(),
            "score.weight",
            Tensor::f32(&[2], [1.0, f32::NAN]),
            "has NaN at 1, but every value of a trained",
        ),
        (score.clone(), "score.weight", f32(&[2, 0]), "every dimension is at least 1"),
        (score.clone(), "score.weight", f32(&[1; 9]), "has 9 dimensions"),
        (score, "score.a b", f32(&[2]), "a trained tensor's name is"),
    ] {
        let from = folder("lora", modules, &[(name, tensor)]);
        refused(&[&"quantise", &from.path(), &"--bits", &"8"], 1, &[says]);
    }
    // PEFT saves modules, and a name without a dot is of none.
    let out = dir();
    let (file, adapter) = (out.path().join("file"), Adapter::read(ours("lora", out.path())).unwrap());
    let gain = TrainedTensor::new("gain", [], vec![2.0]).unwrap();
    adapter.with_trained_tensors(vec![gain]).unwrap().write(&file, IfExists::Refuse).unwrap();
    let lora = out.path().join("lora");
    refused(&[&"convert", &file, &lora, &"--to", &"lora"], 1, &["trained tensor gain lies in no module"]);
    assert!(!lora.exists());
}

/// Each tensor is compared with each name, and a file has the work for it, or is refused at once.
#[test]
fn names_without_number_cost_little() {
    let names: Vec<String> = (0..400_000).map(|i| format!("m{i}")).collect();
    let deep = format!("{}weight", "a.".repeat(250));
    let saved: Vec<_> = (0..40).map(|i| format!("{i}.{deep}")).collect();
    let saved: Vec<_> =
        saved.iter().map(|name| (name.as_str(), models::tensor(Dtype::F32, &[1], 1))).collect();
    let from = folder("lora", json!(names), &saved);
    let start = std::time::Instant::now();
    refused(
        &[&"quantise", &from.path(), &"--bits", &"8"],
        1,
        &["matching modules_to_save takes", "multiply-adds"],
    );
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn a_note_says_that_saved_modules_are_missing() {
    let shown = |modules: Value| {
        let from = folder("lora", modules, &[]);
        let report = report(&[&"inspect", &from.path()]);
        notes(&report).join("; ")
    };
    assert_eq!(shown(json!([])), "");
    assert_eq!(shown(json!(["score"])), "modules_to_save has score, but the file has no tensor of them");
    let two = "modules_to_save has score and 1 more, but the file has no tensor of them";
    assert_eq!(shown(json!(["score", "b"])), two);
}
