//! A GGUF model trains as the Hugging Face folder that it becomes.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{IndexOp, Tensor};
use common::data;
use kron_adapter::gguf::Gguf;
use kron_candle::Inject;
use kron_core::Dtype;
use kron_train::config::{Method, Task};
use kron_train::data::{Tokenizer, Tokens};
use kron_train::model::{Files, Weights, build};
use kron_train::run::{Progress, Stop, run};

/// Returns the committed GGUF, and the folder that it becomes.
fn models(folder: &Path) -> [PathBuf; 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny_llama.gguf");
    let mut gguf = Gguf::open(&path).expect("a model");
    let model = gguf.hugging_face().expect("a llama");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).expect("written");
    write("config.json", model.config.to_string().as_bytes());
    write("tokenizer.json", model.tokenizer.to_string().as_bytes());
    let mut weights = Vec::new();
    gguf.write_safetensors(&model.tensors, Dtype::F32, &mut |_, _, _| Ok(()), &mut weights, &|_| Ok(()))
        .expect("finite values");
    write("model.safetensors", &weights);
    [path, folder.into()]
}

fn logits(path: &Path, ids: &[u32]) -> Vec<f32> {
    let weights = Weights::read(&Files::find(path).expect("files")).expect("weights");
    let body = build(&weights, &Inject::nothing()).expect("a body");
    let hidden = body.hidden(&Tokens::new(&[ids]), None).expect("states").i(0).expect("one text");
    let logits: Tensor = body.logits(&hidden).expect("logits").expect("a decoder");
    logits.flatten_all().and_then(|logits| logits.to_vec1()).expect("values")
}

#[test]
fn both_forms_have_the_same_logits_and_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let [gguf, folder] = models(folder.path());
    let ids = [3, 1, 2, 2, 0, 3];
    let [a, b] = [&gguf, &folder].map(|path| logits(path, &ids));
    assert!(a.iter().all(|logit| logit.is_finite()) && a.iter().any(|logit| *logit != a[0]));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} and {b}");
    }
    let [a, b] =
        [&gguf, &folder.join("tokenizer.json")].map(|path| Tokenizer::read(path).expect("a tokenizer"));
    for text in ["ab", "ba<|end|>ab", "", "abba"] {
        assert_eq!(a.encode(text, 10).expect("ids"), b.encode(text, 10).expect("ids"), "{text}");
    }
    assert_eq!(a.encode("abba<|end|>", 10).expect("ids"), [3, 2, 1, 0]);
    assert_eq!(a.vocabulary(), 4);
}

/// Blocks that stay quantised and dequantised matrices train alike: adapters get the same gradients through them.
#[test]
fn both_forms_train_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "ab ba abba ab b a\n\n".replace([' ', '\n'], "").repeat(40)).expect("written");
    let models = models(folder.path());
    for (method, fused) in
        [(Method::Kron, true), (Method::Kron, false), (Method::Lora, true), (Method::Full, true)]
    {
        let losses = models.each_ref().map(|model| {
            let mut config = common::config(method);
            (config.task, config.data.limit_train, config.model) = (Task::Lm, 0, model.clone());
            (config.data.train, config.data.validation, config.data.max_len) = (text.clone(), None, 12);
            (config.adapter.a_out, config.adapter.fused, config.train.lr) = (2, fused, 1e-2);
            let (weights, data) = common::load(&config);
            let outcome =
                run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
            outcome.steps.iter().map(|step| step.loss).collect::<Vec<_>>()
        });
        let [blocks, matrices] = &losses;
        assert!(blocks.len() > 4 && blocks.len() == matrices.len());
        assert!(blocks[blocks.len() - 1] < 0.95 * blocks[0], "{method:?} does not learn: {blocks:?}");
        for (a, b) in blocks.iter().zip(matrices) {
            assert!((a / b - 1.0).abs() < 1e-4, "{method:?}: {blocks:?} and {matrices:?}");
        }
    }
}

#[test]
fn files_that_are_no_model_are_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::copy(data("stories260K.bin"), &path).expect("written");
    let files = Files::find(&path).expect("a name");
    for error in [Weights::read(&files).expect_err("no GGUF"), Tokenizer::read(&path).expect_err("no GGUF")] {
        assert!(
            error.to_string().contains("is not a GGUF file") && error.to_string().lines().count() == 1,
            "{error}"
        );
    }
}

#[test]
fn a_run_names_the_commands_for_llama_cpp() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let lines: String = (0..64).map(|i| format!("{{\"text\": \"{}\"}}\n", ["abba", "baab"][i % 2])).collect();
    std::fs::write(at("texts.jsonl"), lines).expect("room");
    let [model, _] = models(folder.path());
    let ended = Command::new(env!("CARGO_BIN_EXE_kron-train"))
        .args(["train", "--task", "lm", "--epochs", "1", "--targets", "q_proj", "--max-len", "16", "--model"])
        .args([&model, Path::new("--train"), &at("texts.jsonl"), Path::new("--out"), &at("out")])
        .output()
        .expect("it starts");
    let printed = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let (out, model) = (at("out").display().to_string(), model.display());
    for line in [
        format!("  kron convert {out}/adapter.safetensors {out}/lora.gguf --to gguf-lora --base {model}"),
        format!("  kron merge {model} {out}/adapter.safetensors {out}/merged.gguf --dtype f16"),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{printed}\nwithout\n{line}");
    }
}
