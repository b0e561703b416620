//! Adapters of other trainers as people hold them: wrapped names, adapters' names in them, LoRAs of Kohya's trainers
//! and of diffusers. Merged values are compared with W + s·B·A in float64.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::adapters::{config, dir, refused, report, run};
use crate::golden::{File, Tensor, serialize};
use crate::models::{load, tensor, values};

pub const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.0.self_attn.v_proj";

/// A file's tensors by name, of these shapes, with values of their own.
pub fn file(tensors: &[(String, Dtype, &[usize])]) -> File {
    let with_seed = tensors.iter().zip(11..);
    with_seed.map(|((name, dtype, shape), seed)| (name.clone(), tensor(*dtype, shape, seed))).collect()
}

pub fn write(path: &Path, tensors: &File, metadata: &[(&str, &str)]) {
    let views = tensors.iter().map(|(name, t)| {
        (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("bytes that fit the shape"))
    });
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// Writes a PEFT folder with a LoRA of rank 2 and alpha 6, s = 3.
pub fn peft(dir: &TempDir, tensors: &File) -> PathBuf {
    let folder = dir.path().join("adapter");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), serialize(tensors)).unwrap();
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"] });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

/// Writes a model of these modules, [6, 10] each and more where `shape` says so.
pub fn model(dir: &TempDir, modules: &[&str], shape: &[usize]) -> (PathBuf, File) {
    let path = dir.path().join("base.safetensors");
    let names: Vec<_> =
        modules.iter().map(|module| (format!("{module}.weight"), Dtype::F32, shape)).collect();
    let tensors = file(&names);
    std::fs::write(&path, serialize(&tensors)).unwrap();
    (path, tensors)
}

pub fn product(up: &Tensor, down: &Tensor) -> Vec<f64> {
    let (rows, rank, cols) = (up.shape[0], up.shape[1], down.shape[1]);
    let (up, down) = (values(up), values(down));
    let at = |i: usize| (0..rank).map(|k| up[i / cols * rank + k] * down[k * cols + i % cols]).sum();
    (0..rows * cols).map(at).collect()
}

fn kron(w1: &Tensor, w2: &Tensor) -> Vec<f64> {
    let ([_, q], [m, n]) = ([w1.shape[0], w1.shape[1]], [w2.shape[0], w2.shape[1]]);
    let (a, b, cols) = (values(w1), values(w2), q * n);
    let at = |i: usize| a[i / cols / m * q + i % cols / n] * b[i / cols % m * n + i % cols % n];
    (0..a.len() * b.len()).map(at).collect()
}

/// Merges and asserts that each module's weight is W + s·ΔW and no other tensor changed; returns the report.
pub fn merged(
    base: &(PathBuf, File),
    adapter: &Path,
    options: &[&str],
    want: &[(&str, f64, Vec<f64>)],
) -> Value {
    let out = base.0.with_file_name("merged.safetensors");
    let mut call: Vec<&dyn AsRef<OsStr>> = vec![&"merge", &base.0, &adapter, &out, &"--force"];
    options.iter().for_each(|option| call.push(option));
    let report = report(&call);
    let after = load(&out);
    assert_eq!(after.len(), base.1.len());
    for (name, before) in &base.1 {
        let Some((_, s, delta)) = want.iter().find(|(module, ..)| *name == format!("{module}.weight")) else {
            assert_eq!(before.bytes, after[name].bytes, "{name} has no adapter");
            continue;
        };
        let mut moved = 0.0f64;
        for ((w, got), delta) in values(before).into_iter().zip(values(&after[name])).zip(delta) {
            let exact = w + s * delta;
            // Each term and the sum are rounded to float32, and terms are below 6 in magnitude.
            assert!((got - exact).abs() <= 64.0 * 2f64.powi(-24), "{name}: {got} is not {exact}");
            moved = moved.max((got - w).abs());
        }
        assert!(moved > 0.01, "{name} is as it was");
    }
    report
}

pub fn notes(report: &Value) -> String {
    let notes = report["notes"].as_array().expect("notes").iter();
    notes.map(|note| note.as_str().expect("a sentence")).collect::<Vec<_>>().join("\n")
}

pub fn pair(module: &str, [a, b]: [&str; 2]) -> File {
    file(&[(format!("{module}.{a}"), Dtype::F32, &[2, 10]), (format!("{module}.{b}"), Dtype::F32, &[6, 2])])
}

#[test]
fn wrapped_and_compiled_names_are_the_module_s() {
    let dir = dir();
    let base = model(&dir, &[Q, V], &[6, 10]);
    let plain = pair(&format!("base_model.model.{Q}"), ["lora_A.weight", "lora_B.weight"]);
    let [down, up] = plain.values().collect::<Vec<_>>()[..] else { panic!("two factors") };
    let want = [(Q, 3.0, product(up, down))];
    let q = format!("base_model.model.{Q}");
    let wrapped =
        "base_model.model.model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.self_attn.q_proj";
    for (module, [a, b], says) in [
        (q.as_str(), ["lora_A.weight", "lora_B.weight"], ""),
        (&q, ["lora_A.default.weight", "lora_B.default.weight"], "the adapter's, default"),
        (Q, ["lora_A.weight", "lora_B.weight"], "2 names lack base_model.model."),
        (&format!("_orig_mod.{q}"), ["lora_A.weight", "lora_B.weight"], "_orig_mod"),
        (&format!("base_model.model._orig_mod.{Q}"), ["lora_A.weight", "lora_B.weight"], "wrappers"),
        (wrapped, ["lora_A.weight", "lora_B.weight"], "wrappers"),
        (&format!("module.{q}"), ["lora_A.weight", "lora_B.weight"], "wrappers"),
    ] {
        let adapter = peft(&dir, &pair(module, [a, b]));
        let report = merged(&base, &adapter, &[], &want);
        assert_eq!(report["notes"].as_array().unwrap().is_empty(), says.is_empty(), "{module}: {report}");
        assert!(notes(&report).contains(says), "{module}: {report}");
        // The written file has the module's own name.
        let out = dir.path().join("lora");
        report_of(&["convert", adapter.to_str().unwrap(), out.to_str().unwrap(), "--to", "lora", "--force"]);
        assert_eq!(config(&out)["target_modules"], json!([Q]), "{module}");
    }
    let twice: File =
        [pair(&q, ["lora_A.weight", "lora_B.weight"]), pair(Q, ["lora_A.weight", "lora_B.weight"])]
            .into_iter()
            .flatten()
            .collect();
    refused(&[&"convert", &peft(&dir, &twice), &dir.path().join("out")], 1, &["a tensor occurs once"]);
}

pub fn report_of(args: &[&str]) -> Value {
    report(&args.iter().map(|arg| arg as &dyn AsRef<OsStr>).collect::<Vec<_>>())
}

#[test]
fn of_several_adapters_one_is_chosen() {
    let dir = dir();
    let base = model(&dir, &[Q], &[6, 10]);
    let q = format!("base_model.model.{Q}");
    let both = file(&[
        (format!("{q}.lora_A.one.weight"), Dtype::F32, &[2, 10]),
        (format!("{q}.lora_B.one.weight"), Dtype::F32, &[6, 2]),
        (format!("{q}.lora_A.two.weight"), Dtype::F32, &[2, 10]),
        (format!("{q}.lora_B.two.weight"), Dtype::F32, &[6, 2]),
    ]);
    let adapter = peft(&dir, &both);
    let (out, name) = (dir.path().join("out"), adapter.to_str().unwrap());
    let call: [&dyn AsRef<OsStr>; 4] = [&"merge", &base.0, &adapter, &out];
    refused(&call, 1, &["several adapters, one, two; --adapter-name NAME chooses one"]);
    refused(
        &[&"convert", &name, &out, &"--adapter-name", &"three"],
        2,
        &["no adapter three", "those of one, two"],
    );
    for chosen in ["one", "two"] {
        let part = |end: &str| &both[&format!("{q}.lora_{end}.{chosen}.weight")];
        let want = [(Q, 3.0, product(part("B"), part("A")))];
        let report = merged(&base, &adapter, &["--adapter-name", chosen], &want);
        let other = if chosen == "one" { "two" } else { "one" };
        let left_out = [format!("{q}.lora_A.{other}.weight"), format!("{q}.lora_B.{other}.weight")];
        assert_eq!(report["adapter_left_out"], json!(left_out));
        for call in [
            vec!["inspect", name, "--adapter-name", chosen],
            vec!["convert", name, out.to_str().unwrap(), "--force", "--adapter-name", chosen],
            vec!["quantise", name, "--bits", "8", "--adapter-name", chosen],
        ] {
            assert_eq!(report_of(&call)["left_out"], json!(left_out), "{call:?}");
            let (_, text, _) = run(&call.iter().map(|arg| arg as &dyn AsRef<OsStr>).collect::<Vec<_>>());
            assert!(text.contains(&left_out[0]) && text.contains(&left_out[1]), "{text}");
        }
        let compared = report_of(&["diff", name, out.to_str().unwrap(), "--adapter-name", chosen]);
        assert!(compared["total"]["relative_distance"].as_f64().unwrap() < 1e-7);
    }
    let plain = peft(&dir, &pair(&q, ["lora_A.weight", "lora_B.weight"]));
    refused(&[&"inspect", &plain, &"--adapter-name", &"one"], 2, &["no adapter one", "no names of adapters"]);
}

/// A scalar of these bytes.
fn scalar(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Tensor {
    Tensor { dtype, shape: shape.to_vec(), bytes: bytes.to_vec() }
}

#[test]
fn an_alpha_is_any_number_and_a_kohya_lora_has_alpha_over_r() {
    let dir = dir();
    let base = model(&dir, &["down_blocks.0.attn1.to_q"], &[6, 10]);
    let module = "lora_unet_down_blocks_0_attn1_to_q";
    let path = dir.path().join("kohya.safetensors");
    for (alpha, s) in [
        (Some(scalar(Dtype::F32, &[], &6f32.to_le_bytes())), 3.0),
        (Some(scalar(Dtype::I64, &[], &6i64.to_le_bytes())), 3.0),
        (Some(scalar(Dtype::I32, &[1], &(-6i32).to_le_bytes())), -3.0),
        (Some(scalar(Dtype::U8, &[1, 1], &[6])), 3.0),
        (Some(scalar(Dtype::F64, &[1], &1f64.to_le_bytes())), 0.5),
        (Some(scalar(Dtype::F16, &[1, 1], &half::f16::from_f32(6.0).to_le_bytes())), 3.0),
        (Some(scalar(Dtype::BF16, &[], &half::bf16::from_f32(6.0).to_le_bytes())), 3.0),
        (Some(scalar(Dtype::F32, &[], &0f32.to_le_bytes())), 1.0),
        (None, 1.0),
    ] {
        for dtype in [Dtype::F32, Dtype::F16] {
            let down = format!("{module}.lora_down.weight");
            let up = format!("{module}.lora_up.weight");
            let mut tensors = file(&[(down.clone(), dtype, &[2, 10]), (up.clone(), dtype, &[6, 2])]);
            let want = [("down_blocks.0.attn1.to_q", s, product(&tensors[&up], &tensors[&down]))];
            tensors.extend(alpha.clone().map(|alpha| (format!("{module}.alpha"), alpha)));
            write(&path, &tensors, &[]);
            let report = merged(&base, &path, &[], &want);
            assert_eq!(
                notes(&report).contains("1 layers have no alpha, neither"),
                alpha.is_none(),
                "{report}"
            );
            assert_eq!(report_of(&["inspect", path.to_str().unwrap()])["format"], "kohya-lora");
        }
    }
    for (alpha, says) in [
        (scalar(Dtype::F32, &[0], &[]), "is not one number"),
        (scalar(Dtype::I64, &[2], &[0; 16]), "is not one number"),
        (scalar(Dtype::BOOL, &[], &[1]), "BOOL"),
        (scalar(Dtype::F32, &[], &f32::NAN.to_le_bytes()), "NaN"),
    ] {
        let mut tensors = pair(module, ["lora_down.weight", "lora_up.weight"]);
        tensors.insert(format!("{module}.alpha"), alpha);
        write(&path, &tensors, &[]);
        refused(&[&"convert", &path, &dir.path().join("out")], 1, &[says]);
    }
    // PEFT would find no module of this name.
    write(&path, &pair(module, ["lora_down.weight", "lora_up.weight"]), &[]);
    let out = dir.path().join("out");
    refused(&[&"convert", &path, &out, &"--to", &"lora"], 2, &["Kohya's name", "--base MODEL"]);
    report(&[&"convert", &path, &out, &"--to", &"lora", &"--base", &base.0]);
    assert_eq!(config(&out)["target_modules"], json!(["down_blocks.0.attn1.to_q"]));
}

#[test]
fn a_convolution_of_one_place_is_a_linear_layer() {
    let dir = dir();
    let base = model(&dir, &["proj_in"], &[6, 10, 1, 1]);
    let path = dir.path().join("conv.safetensors");
    let [down, up] =
        ["lora_unet_proj_in.lora_down.weight", "lora_unet_proj_in.lora_up.weight"].map(String::from);
    let tensors =
        file(&[(down.clone(), Dtype::F32, &[2, 10, 1, 1]), (up.clone(), Dtype::F32, &[6, 2, 1, 1])]);
    write(&path, &tensors, &[]);
    let report = merged(&base, &path, &[], &[("proj_in", 1.0, product(&tensors[&up], &tensors[&down]))]);
    assert!(notes(&report).contains("1×1 convolutions"), "{report}");
    let [w1, w2] = ["lycoris_proj_in.lokr_w1", "lycoris_proj_in.lokr_w2"].map(String::from);
    let tensors = file(&[(w1.clone(), Dtype::F32, &[3, 2]), (w2.clone(), Dtype::F32, &[2, 5, 1, 1])]);
    write(&path, &tensors, &[]);
    merged(&base, &path, &[], &[("proj_in", 1.0, kron(&tensors[&w1], &tensors[&w2]))]);
    let tensors = file(&[(down, Dtype::F32, &[2, 10, 3, 3]), (up, Dtype::F32, &[6, 2, 1, 1])]);
    write(&path, &tensors, &[]);
    refused(
        &[&"convert", &path, &dir.path().join("out")],
        1,
        &["[2, 10, 3, 3]", "convolutions are not supported"],
    );
}

#[test]
fn a_lora_of_diffusers_has_its_scale_in_the_metadata() {
    let dir = dir();
    let base = model(&dir, &["blocks.0.to_q", "blocks.1.to_q"], &[6, 10]);
    let path = dir.path().join("pytorch_lora_weights.safetensors");
    let names = |prefix: &str, ends: [&str; 2]| {
        [pair(&format!("{prefix}blocks.0.to_q"), ends), pair(&format!("{prefix}blocks.1.to_q"), ends)]
            .into_iter()
            .flatten()
            .collect::<File>()
    };
    let configured = |fields: &Value| fields.to_string();
    let pattern = json!({ "transformer.r": 2, "transformer.lora_alpha": 5, "transformer.bias": "none",
        "transformer.alpha_pattern": { "blocks.1.to_q": 8 }, "transformer.target_modules": ["to_q"] });
    let rs = json!({ "transformer.r": 2, "transformer.lora_alpha": 2, "transformer.use_rslora": true });
    let (pattern, rs) = (configured(&pattern), configured(&rs));
    let root = 2f64.sqrt();
    for (metadata, [first, second], says) in [
        (&[][..], [1.0, 1.0], "2 layers have no alpha, neither beside their factors nor in the metadata"),
        (&[("lora_alpha", "0"), ("network_alpha", "None")], [1.0, 1.0], "2 layers have no alpha"),
        (&[("lora_adapter_metadata", r#"{"r": 2, "lora_alpha": 5}"#)], [2.5, 2.5], "lora_adapter_metadata"),
        (&[("lora_adapter_metadata", r#"{"unet.r": "?"}"#)], [1.0, 1.0], "2 layers have no alpha"),
        (&[("lora_alpha", "5")], [2.5, 2.5], "alpha = 5 of 2 layers comes from the metadata lora_alpha"),
        (&[("alpha", "3.0")], [1.5, 1.5], "metadata alpha"),
        (&[("network_alpha", "1")], [0.5, 0.5], "metadata network_alpha"),
        (&[("lora_adapter_metadata", pattern.as_str())], [2.5, 4.0], "lora_adapter_metadata"),
        (&[("lora_adapter_metadata", rs.as_str())], [root, root], "lora_adapter_metadata"),
    ] {
        for ends in [["lora_A.weight", "lora_B.weight"], ["lora.down.weight", "lora.up.weight"]] {
            let tensors = names("transformer.", ends);
            write(&path, &tensors, metadata);
            let factor = |i: usize, end: &str| &tensors[&format!("transformer.blocks.{i}.to_q.{end}")];
            let delta = |i| product(factor(i, ends[1]), factor(i, ends[0]));
            let want = [("blocks.0.to_q", first, delta(0)), ("blocks.1.to_q", second, delta(1))];
            let report = merged(&base, &path, &[], &want);
            assert!(notes(&report).contains(says), "{report}");
            assert_eq!(report_of(&["inspect", path.to_str().unwrap()])["format"], "diffusers-lora");
        }
    }
    let tensors = names("transformer.", ["lora_A.weight", "lora_B.weight"]);
    for (metadata, says) in [
        (&[("lora_alpha", "five")][..], "lora_alpha is \"five\", but an alpha is a number"),
        (&[("lora_alpha", "5"), ("alpha", "4")], "is another number"),
        (&[("lora_adapter_metadata", "[]")], "not a JSON object"),
        (
            &[("lora_adapter_metadata", r#"{"transformer.r": 3, "transformer.lora_alpha": 3}"#)],
            "has rank 2, but",
        ),
        (
            &[(
                "lora_adapter_metadata",
                r#"{"transformer.r": 2, "transformer.lora_alpha": 3, "transformer.use_dora": true}"#,
            )],
            "use_dora",
        ),
    ] {
        write(&path, &tensors, metadata);
        refused(&[&"convert", &path, &dir.path().join("out")], 1, &[says]);
    }
    // A merge folds DoRA, which needs its magnitudes.
    let dora = r#"{"transformer.r": 2, "transformer.lora_alpha": 3, "transformer.use_dora": true}"#;
    write(&path, &tensors, &[("lora_adapter_metadata", dora)]);
    let out = dir.path().join("out.safetensors");
    refused(
        &[&"merge", &base.0, &path, &out],
        1,
        &["the metadata has use_dora, but transformer.blocks.0.to_q has no"],
    );
}

/// Reads no metadata for modules that have their alphas, so that none of it can refuse the file.
#[test]
fn metadata_count_only_where_an_alpha_is_missing() {
    let dir = dir();
    let base = model(&dir, &["q"], &[6, 10]);
    let path = dir.path().join("kohya.safetensors");
    let ends = ["q.lora_down.weight", "q.lora_up.weight", "q.alpha"].map(String::from);
    let [down, up, alpha] = ends.clone();
    let tensors = file(&[
        (down.clone(), Dtype::F32, &[2, 10]),
        (up.clone(), Dtype::F32, &[6, 2]),
        (alpha.clone(), Dtype::F32, &[]),
    ]);
    let metadata =
        [("alpha", "five"), ("lora_alpha", "5"), ("network_alpha", "4"), ("lora_adapter_metadata", "[")];
    write(&path, &tensors, &metadata);
    let scale = crate::models::values(&tensors[&alpha])[0] / 2.0;
    merged(&base, &path, &[], &[("q", scale, product(&tensors[&up], &tensors[&down]))]);
}

#[test]
fn a_file_may_mix_lokr_and_lora() {
    let dir = dir();
    let base = model(&dir, &["q", "k"], &[6, 10]);
    let path = dir.path().join("mixed.safetensors");
    let mut tensors = file(&[
        ("lycoris_q.lokr_w1".into(), Dtype::F32, &[3, 2]),
        ("lycoris_q.lokr_w2".into(), Dtype::F32, &[2, 5]),
        ("lycoris_k.lora_down.weight".into(), Dtype::F32, &[2, 10]),
        ("lycoris_k.lora_up.weight".into(), Dtype::F32, &[6, 2]),
    ]);
    let want = [
        ("q", 1.0, kron(&tensors["lycoris_q.lokr_w1"], &tensors["lycoris_q.lokr_w2"])),
        ("k", 2.5, product(&tensors["lycoris_k.lora_up.weight"], &tensors["lycoris_k.lora_down.weight"])),
    ];
    tensors.insert("lycoris_k.alpha".into(), scalar(Dtype::F32, &[], &5f32.to_le_bytes()));
    tensors.insert("lycoris_q.alpha".into(), scalar(Dtype::F32, &[], &9f32.to_le_bytes()));
    write(&path, &tensors, &[]);
    let report = merged(&base, &path, &[], &want);
    assert_eq!(report["notes"], json!([]));
    assert_eq!(report_of(&["inspect", path.to_str().unwrap()])["format"], "lycoris-mixed");
    // Two full factors have s = 1, and an alpha that is not the rank that the file names has a note.
    for (rank, has_note) in [("9", false), ("4", true)] {
        write(&path, &tensors, &[("ss_network_dim", rank)]);
        let report = merged(&base, &path, &[], &want);
        assert_eq!(notes(&report).contains("two full factors have s = 1"), has_note, "{report}");
    }
    tensors.insert("lycoris_k.lokr_w1".into(), tensor(Dtype::F32, &[3, 2], 1));
    write(&path, &tensors, &[]);
    refused(&[&"convert", &path, &dir.path().join("out")], 1, &["lycoris_k needs both factors of a LoRA"]);
}
