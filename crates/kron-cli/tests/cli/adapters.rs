//! `kron inspect`, `diff` and `quantise` on golden adapters, and how tests call the program on them.

use std::path::{Path, PathBuf};

use kron_adapter::{Adapter, Layer, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Split, Theta};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::{File, Tensor, golden, kron};

/// The golden PEFT adapters.
pub const PEFT: [&str; 4] = ["lokr", "lokr_mix", "lora", "lora_rs"];

pub fn peft(name: &str) -> PathBuf {
    golden().join("model_llama").join(name)
}

pub fn dir() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// Runs the program and returns its exit code, standard output and standard error.
pub fn run(args: &[&dyn AsRef<std::ffi::OsStr>]) -> (i32, String, String) {
    let mut command = kron();
    args.iter().for_each(|arg| {
        command.arg(arg);
    });
    let run = command.output().expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (run.status.code().unwrap_or(-1), text(run.stdout), text(run.stderr))
}

/// Runs the program with `--json`, asserts success and returns the JSON.
pub fn report(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Value {
    let (code, out, err) = run(&[args, &[&"--json" as &dyn AsRef<std::ffi::OsStr>]].concat());
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// Asserts this exit code and one sentence that contains every part of `says`, and no other output.
pub fn refused(args: &[&dyn AsRef<std::ffi::OsStr>], code: i32, says: &[&str]) {
    let (got, out, err) = run(args);
    assert_eq!((got, out.as_str()), (code, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("error: ") && !err.contains("panicked"), "{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
}

pub fn convert(from: &Path, to: &Path, format: &str) -> Value {
    report(&[&"convert", &from, &to, &"--to", &format])
}

pub fn tensors(path: &Path) -> File {
    let bytes = std::fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |t: safetensors::tensor::TensorView| Tensor {
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        bytes: t.data().to_vec(),
    };
    file.tensors().into_iter().map(|(name, t)| (name, tensor(t))).collect()
}

pub fn same(got: &File, want: &File) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, tensor) in want {
        assert_eq!((&got[name].shape, &got[name].bytes), (&tensor.shape, &tensor.bytes), "{name}");
    }
}

/// Returns the values of a float32 tensor.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
}

pub fn config(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("adapter_config.json")).expect("a configuration");
    serde_json::from_slice(&text).expect("JSON")
}

/// Writes an adapter of these layers in our own format.
pub fn ours(shapes: &[(&str, KronShape, Scaling)], path: &Path) -> Adapter {
    let layers = shapes.iter().zip(1..).map(|((module, shape, scaling), seed)| {
        Layer::new(*module, *scaling, Theta::random(*shape, seed)).unwrap()
    });
    let adapter = Adapter::new(layers.collect()).unwrap();
    adapter.write(path, kron_adapter::IfExists::Refuse).unwrap();
    adapter
}

pub fn scaling(alpha: f32, rank: usize) -> Scaling {
    Scaling::new(alpha, rank, ScaleRule::AlphaOverR).unwrap()
}

#[test]
fn inspect_shows_the_index_s_layers_and_scales() {
    let index: Value =
        serde_json::from_slice(&std::fs::read(golden().join("model_llama/index.json")).unwrap()).unwrap();
    for name in PEFT {
        let report = report(&[&"inspect", &peft(name)]);
        let want = index["adapters"][name]["modules"].as_object().unwrap();
        let layers = report["layers"].as_array().unwrap();
        assert_eq!(layers.len(), want.len(), "{name}");
        for layer in layers {
            let listed = &want[layer["module"].as_str().unwrap()];
            assert_eq!(layer["scale"], listed["scale"], "{name}: {layer}");
            let (norm, rank) = (layer["norm"].as_f64().unwrap(), layer["effective_rank"].as_f64().unwrap());
            assert!(norm > 1e-3 && rank >= 1.0 && rank <= layer["max_rank"].as_f64().unwrap(), "{layer}");
        }
    }
}

/// Computes w1 ⊗ w2 from the file's tensors, element by element.
#[test]
fn inspect_s_norm_is_that_of_the_product_of_the_file_s_tensors() {
    let file = tensors(&peft("lokr").join("adapter_model.safetensors"));
    let report = report(&[&"inspect", &peft("lokr")]);
    for layer in report["layers"].as_array().unwrap() {
        let part =
            |name: &str| &file[&format!("base_model.model.{}.{name}", layer["module"].as_str().unwrap())];
        let (w1, a, b) = (part("lokr_w1"), part("lokr_w2_a"), part("lokr_w2_b"));
        let (n, r, m) = (a.shape[0], a.shape[1], b.shape[1]);
        let (a, b) = (values(a), values(b));
        let w2 = (0..n * m).map(|at| (0..r).map(|k| a[at / m * r + k] * b[k * m + at % m]).sum::<f64>());
        let square = |v: f64| v * v;
        let want = values(w1).into_iter().map(square).sum::<f64>() * w2.map(square).sum::<f64>();
        let want = layer["scale"].as_f64().unwrap() * want.sqrt();
        assert!((layer["norm"].as_f64().unwrap() / want - 1.0).abs() < 1e-9, "{layer}: {want}");
    }
}

#[test]
fn inspect_writes_a_page_that_needs_no_other_file() {
    let dir = dir();
    let page = dir.path().join("page.html");
    report(&[&"inspect", &peft("lokr_mix"), &"--html", &page]);
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("<svg") && text.contains("mlp.gate_proj") && text.matches("<circle").count() > 10);
    assert!(!text.contains("src=") && !text.contains("NaN"));
    refused(&[&"inspect", &peft("lora"), &"--html", &page], 2, &["exists", "--force"]);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), text);
}

/// Each line of a chart has its layer's colour in the chart's own legend, and no colour has two layers.
#[test]
fn the_page_s_legends_say_which_line_is_which_layer() {
    let dir = dir();
    let (path, page) = (dir.path().join("ours"), dir.path().join("page.html"));
    let shape = KronShape::kron(LayerDims { d_out: 12, d_in: 20 }, Split { a_out: 3, a_in: 2 }, 2).unwrap();
    let names: Vec<String> = (0..28).flat_map(|i| [format!("l.{i}.q_proj"), format!("l.{i}.up")]).collect();
    let layers: Vec<_> = names.iter().map(|name| (name.as_str(), shape, scaling(3.0, 2))).collect();
    ours(&layers, &path);
    report(&[&"inspect", &path, &"--html", &page]);
    let text = std::fs::read_to_string(&page).unwrap();
    let (spectra, _) = text.split_once("<figcaption>").unwrap();
    let after = |text: &str, start: &str, end: &str| -> Vec<String> {
        text.split(start).skip(1).map(|rest| rest.split(end).next().unwrap().to_string()).collect()
    };
    let mut seen = Vec::new();
    for panel in spectra.split("<svg").skip(1) {
        let lines = after(panel, "opacity=\"0.9\" stroke=\"", "\"");
        let entries = after(panel, "<li><b style=\"color:", "</li>");
        assert_eq!(lines.len(), entries.len(), "{panel}");
        for (i, (line, entry)) in lines.iter().zip(&entries).enumerate() {
            let (colour, module) = entry.split_once("\">■</b> ").unwrap();
            assert!(colour == line && !lines[..i].contains(line), "{entry}: {lines:?}");
            seen.push(module.to_string());
        }
    }
    let mut names = names;
    names.sort();
    seen.sort();
    assert_eq!(seen, names);
}

#[test]
fn diff_of_an_adapter_with_itself_is_nothing_and_of_two_kinds_is_something() {
    let same = report(&[&"diff", &peft("lokr"), &peft("lokr")]);
    assert!(same["total"]["relative_distance"].as_f64().unwrap() < 1e-7);
    assert!((same["total"]["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    let other = report(&[&"diff", &peft("lokr"), &peft("lora")]);
    let q = other["layers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["module"] == "model.layers.0.self_attn.q_proj")
        .unwrap();
    assert!(q["cosine"].as_f64().unwrap().abs() < 0.5 && q["distance"].as_f64().unwrap() > 0.0);
    let k = other["layers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["module"] == "model.layers.0.self_attn.k_proj")
        .unwrap();
    assert_eq!(
        (&k["other_norm"], &k["cosine"], &k["relative_distance"]),
        (&json!(0.0), &json!(null), &json!(1.0))
    );
}

#[test]
fn quantise_measures_what_it_writes() {
    let dir = dir();
    for (bits, low, high) in [("8", 1e-3, 2e-2), ("4", 2e-2, 3e-1)] {
        let out = dir.path().join(format!("{bits}.safetensors"));
        let measured = report(&[&"quantise", &peft("lokr"), &"--bits", &bits, &"--out", &out]);
        let error = measured["error"].as_f64().unwrap();
        assert!((low..high).contains(&error), "{bits} bits: {error}");
        let compared = report(&[&"diff", &peft("lokr"), &out]);
        let apart = compared["total"]["relative_distance"].as_f64().unwrap();
        assert!((apart / error - 1.0).abs() < 1e-6, "{apart} and {error}");
        let before = dir.path().join(format!("{bits}-before.safetensors"));
        convert(&peft("lokr"), &before, "kron");
        for (x, y) in
            Adapter::read(&before).unwrap().layers().iter().zip(Adapter::read(&out).unwrap().layers())
        {
            assert_eq!(x.theta().a(), y.theta().a(), "A is kept");
        }
    }
}

#[test]
fn nothing_is_overwritten_unless_told_and_no_other_file_ever() {
    let dir = dir();
    let (file, folder) = (dir.path().join("a.safetensors"), dir.path().join("lora"));
    convert(&peft("lokr"), &file, "kron");
    convert(&peft("lokr"), &folder, "lora");
    refused(&[&"convert", &peft("lora"), &file], 2, &["a.safetensors exists", "--force"]);
    refused(&[&"convert", &"--to", &"lora", &peft("lora"), &folder], 2, &["lora exists", "--force"]);
    let before = tensors(&folder.join("adapter_model.safetensors"));
    report(&[&"convert", &"--to", &"lora", &peft("lora"), &folder, &"--force"]);
    assert_ne!(tensors(&folder.join("adapter_model.safetensors")).len(), before.len());
    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    refused(
        &[&"convert", &"--to", &"lora", &peft("lokr"), &folder, &"--force"],
        2,
        &["notes.txt", "nothing else"],
    );
    refused(&[&"convert", &peft("lokr"), &folder, &"--force"], 2, &["is a folder"]);
    refused(&[&"convert", &"--to", &"lora", &peft("lokr"), &file, &"--force"], 2, &["is not a folder"]);
    assert_eq!(std::fs::read_to_string(folder.join("notes.txt")).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "something was left behind");
}
