//! `kron merge` of what adapters hold beyond ΔW, compared with what PEFT and LyCORIS merged.

use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::adapters::{dir, refused, report, run};
use crate::golden::{File, Tensor, golden, serialize};
use crate::models::{assert_merge_fails, load, merge, tensor, values};

/// Adapters in the golden folder, with the numbers of layers, replaced tensors and other tensors added to.
const CASES: [(&str, usize, usize, usize); 13] = [
    ("dora", 2, 0, 0),
    ("dora_embedding", 1, 0, 0),
    ("dora_conv1d", 1, 0, 0),
    ("dora_outputs.safetensors", 2, 0, 0),
    ("dora_inputs.safetensors", 2, 0, 0),
    ("conv1d", 1, 0, 0),
    ("experts", 7, 0, 0),
    ("tokens", 1, 1, 0),
    ("embedding", 2, 0, 0),
    ("lora_bias", 1, 0, 1),
    ("biases", 2, 3, 0),
    ("norms.safetensors", 2, 0, 2),
    ("full.safetensors", 0, 0, 3),
];

pub fn extras() -> PathBuf {
    golden().join("extras")
}

/// Writes the golden model as a folder, with these changes.
pub fn model(dir: &Path, change: impl Fn(&mut File)) -> PathBuf {
    let base = dir.join("model");
    std::fs::create_dir_all(&base).unwrap();
    let mut file = load(&extras().join("base.safetensors"));
    change(&mut file);
    std::fs::write(base.join("model.safetensors"), serialize(&file)).unwrap();
    let config = json!({ "model_type": "gpt2", "tie_word_embeddings": false });
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    base
}

/// Copies a golden PEFT folder, with these changes.
pub fn peft(dir: &Path, name: &str, change: impl Fn(&mut File), config: impl Fn(&mut Value)) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut file = load(&extras().join(name).join("adapter_model.safetensors"));
    change(&mut file);
    std::fs::write(folder.join("adapter_model.safetensors"), serialize(&file)).unwrap();
    let text = std::fs::read(extras().join(name).join("adapter_config.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    config(&mut json);
    std::fs::write(folder.join("adapter_config.json"), json.to_string()).unwrap();
    folder
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn agrees_with_peft_and_lycoris() {
    let dir = dir();
    let base = model(dir.path(), |_| ());
    let before = load(&base.join("model.safetensors"));
    let merged = load(&extras().join("merged.safetensors"));
    for (name, layers, replaced, added) in CASES {
        let out = dir.path().join(format!("{name}-out"));
        let json = report(&[&"merge", &base, &extras().join(name), &out]);
        assert_eq!(
            (&json["layers"], &json["replaced"], &json["added"], &json["skipped"]),
            (&json!(layers), &json!(replaced), &json!(added), &json!([])),
            "{name}"
        );
        let after = load(&out.join("model.safetensors"));
        let case = name.trim_end_matches(".safetensors");
        let mut compared = 0;
        for (tensor, got) in &after {
            let Some(theirs) = merged.get(&format!("{case}/{tensor}")) else {
                assert_eq!(got.bytes, before[tensor].bytes, "{name}: {tensor}");
                continue;
            };
            compared += 1;
            let [got, theirs, before] = [got, theirs, &before[tensor]].map(values);
            let largest = theirs.iter().fold(0.0f64, |most, v| most.max(v.abs()));
            // Both sides round ΔW, the sum, the norm, the factor and the product in float32.
            let bound = 16.0 * 2f64.powi(-24) * largest;
            assert!(apart(&got, &theirs) <= bound, "{name}: {tensor} {} {bound}", apart(&got, &theirs));
            assert!(apart(&got, &before) > 1e3 * bound, "{name}: {tensor} is as it was");
        }
        assert!(compared >= layers && compared > 0, "{name}");
        let copies = usize::from(name.ends_with("embedding"));
        let notes = json["notes"].as_array().unwrap();
        assert_eq!(notes.len(), copies + usize::from(name == "dora_inputs.safetensors"), "{notes:?}");
        assert!(copies == 0 || notes[0].as_str().unwrap().contains("equals model.embed_tokens.weight"));
    }
}

/// W' in bf16 is the exact one, rounded once from float32.
#[test]
fn dora_is_rounded_once() {
    let dir = dir();
    let base = dir.path().join("base.safetensors");
    let halved = |file: &File| -> File {
        let rounded = |t: &Tensor| values(t).iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect();
        let tensor = |t: &Tensor| Tensor { dtype: Dtype::BF16, shape: t.shape.clone(), bytes: rounded(t) };
        file.iter().map(|(name, t)| (name.clone(), tensor(t))).collect()
    };
    let before = halved(&load(&extras().join("base.safetensors")));
    std::fs::write(&base, serialize(&before)).unwrap();
    let factors = load(&extras().join("dora/adapter_model.safetensors"));
    let out = dir.path().join("out.safetensors");
    report(&[&"merge", &base, &extras().join("dora"), &out]);
    let after = load(&out);
    for (module, d_out, d_in) in [("q_proj", 20, 12), ("k_proj", 12, 20)] {
        let of = |part: &str| values(&factors[&format!("base_model.model.model.{module}.{part}")]);
        let [a, b, m] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(of);
        let name = format!("model.{module}.weight");
        let (w, got) = (values(&before[&name]), values(&after[&name]));
        for i in 0..d_out {
            let sum = |j: usize| (0..3).map(|k| b[i * 3 + k] * a[k * d_in + j]).sum::<f64>();
            let row: Vec<f64> = (0..d_in).map(|j| w[i * d_in + j] + 5.0 / 3.0 * sum(j)).collect();
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            for (j, v) in row.iter().enumerate() {
                let exact = m[i] * v / norm;
                let bound = 2f64.powi(-8) * exact.abs() + 64.0 * 2f64.powi(-24);
                assert!((got[i * d_in + j] - exact).abs() <= bound, "{name}: {i} {j}");
            }
        }
    }
}

/// Commands that know ΔW alone say why they refuse.
#[test]
fn other_commands_go_on_refusing() {
    for (name, says) in [
        ("dora", "DoRA rescales the whole weight"),
        ("dora_outputs.safetensors", "it belongs to DoRA"),
        ("embedding", "beside the factors of an embedding"),
        ("lora_bias", "lora_bias is true, which is refused: trained biases have no place in ΔW"),
        ("norms.safetensors", "it is not a factor of ΔW"),
        ("full.safetensors", "is not an adapter"),
        ("experts", "target_parameters is"),
    ] {
        let (dir, path) = (dir(), extras().join(name));
        let out = dir.path().join("out.safetensors");
        refused(&[&"convert", &path, &out], 1, &[says]);
        let diagnosis = report(&[&"inspect", &path]);
        assert!(diagnosis["refused"].as_str().unwrap().contains(says), "{diagnosis}");
        let merge =
            diagnosis["commands"].as_array().unwrap().iter().find(|v| v["commands"] == "merge as ADAPTER");
        assert_eq!(merge.expect("a verdict")["accepted"], true, "{diagnosis}");
    }
}

#[test]
fn a_copy_that_differs_is_named_with_the_weight() {
    let dir = dir();
    let base = model(dir.path(), |file| {
        file.get_mut("model.embed_tokens.weight").unwrap().set(7, |v| v + 1.0);
    });
    let merged = merge(&base, &extras().join("embedding"), &dir.path().join("out"), &[]);
    let copy = "base_model.model.model.embed_tokens.base_layer.weight";
    assert_merge_fails(merged, 1, &[copy, "differs from model.embed_tokens.weight"]);
    assert!(!dir.path().join("out").exists());
    // A copy that was rounded to bf16 equals the weight that rounds to it.
    let base = model(dir.path(), |_| ());
    let folder = peft(
        dir.path(),
        "embedding",
        |file| {
            let exact = values(&file[copy]);
            let copy = file.get_mut(copy).unwrap();
            copy.dtype = Dtype::BF16;
            copy.bytes = exact.iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect();
        },
        |_| (),
    );
    report(&[&"merge", &base, &folder, &dir.path().join("out")]);
}

/// Merges tensors that have no place in the model: refused by name, or left out by choice and listed.
#[test]
fn what_cannot_be_merged_is_listed() {
    let dir = dir();
    let without_bias = model(dir.path(), |file| {
        file.remove("model.q_proj.bias");
        file.remove("model.norm.bias");
    });
    let both = |name: &str, adapter: &Path, tensor: &str, why: &str| {
        let out = dir.path().join(name);
        let merged = merge(&without_bias, adapter, &out, &[]);
        assert_merge_fails(merged, 1, &[tensor, why]);
        assert!(!out.exists());
        let json = report(&[&"merge", &without_bias, &adapter, &out, &"--skip-unsupported"]);
        let skipped = json["skipped"].as_array().unwrap();
        let found = skipped.iter().find(|entry| entry["tensor"] == tensor).expect("it is listed");
        assert!(found["why"].as_str().unwrap().contains(why), "{found}");
        assert_eq!(found["adapter"], json!(adapter.display().to_string()));
        let (code, text, _) =
            run(&[&"merge", &without_bias, &adapter, &out, &"--skip-unsupported", &"--force"]);
        assert!(code == 0 && text.contains(&format!("skipped: {tensor} of ")), "{text}");
        (skipped.len(), json["layers"].as_u64().unwrap())
    };
    let bias = "base_model.model.model.q_proj.lora_B.bias";
    let place = "belongs to model.q_proj.bias, which the model does not have";
    assert_eq!(both("bias", &extras().join("lora_bias"), bias, place), (1, 1));
    let place = "belongs to model.norm.bias, which the model does not have";
    assert_eq!(both("norm", &extras().join("norms.safetensors"), "lycoris_model_norm.b_norm", place), (1, 2));

    // A factor of another method makes the module's other factors useless.
    let mut file = load(&extras().join("norms.safetensors"));
    file.remove("lycoris_model_norm.b_norm");
    file.insert("lycoris_model_k_proj.lokr_t2".into(), tensor(Dtype::F32, &[2, 2, 3, 3], 1));
    let path = dir.path().join("tucker.safetensors");
    std::fs::write(&path, serialize(&file)).unwrap();
    assert_eq!(both("tucker", &path, "lycoris_model_k_proj.lokr_t2", "Tucker core"), (5, 1));
    let after = load(&dir.path().join("tucker/model.safetensors"));
    let before = load(&without_bias.join("model.safetensors"));
    assert_eq!(after["model.k_proj.weight"].bytes, before["model.k_proj.weight"].bytes);
    assert_ne!(after["model.norm.weight"].bytes, before["model.norm.weight"].bytes);
}

/// Leaves out a module as a whole, whatever the tensor is that no merge can fold.
#[test]
fn what_is_left_of_a_module_is_no_other_change() {
    let dir = dir();
    let base = model(dir.path(), |_| ());
    let before = load(&base.join("model.safetensors"));
    let write = |name: &str, tensors: &[(&str, &[usize])]| {
        let tensors = tensors.iter().map(|(name, shape)| (name.to_string(), tensor(Dtype::F32, shape, 1)));
        let path = dir.path().join(name);
        std::fs::write(&path, serialize(&tensors.collect())).unwrap();
        path
    };
    let [d_out, d_in] = before["model.q_proj.weight"].shape[..] else { panic!("a matrix") };
    let (up, down) = ("model.q_proj.lora_up.weight", "model.q_proj.lora_down.weight");
    for (name, other, why) in [
        ("mid.safetensors", "model.q_proj.lora_mid.weight", "Tucker core"),
        ("other.safetensors", "model.q_proj.lora_E.weight", "it is not a factor of ΔW"),
    ] {
        let bias = ("model.q_proj.diff_b", &[d_out][..]);
        let tensors = [(up, &[d_out, 2][..]), (down, &[2, d_in]), (other, &[2, 2]), bias];
        let (alone, out) = (write("alone.safetensors", &tensors), dir.path().join("out"));
        let merged = merge(&base, &alone, &out, &["--skip-unsupported"]);
        assert_merge_fails(merged, 1, &["none of its 4 tensors can be merged"]);
        let norm = ("model.norm.w_norm", &before["model.norm.weight"].shape[..]);
        let path = write(name, &[&tensors[..], &[norm]].concat());
        assert_merge_fails(merge(&base, &path, &out, &[]), 1, &[other, why]);
        let merged =
            report(&[&"merge", &base, &path, &dir.path().join(format!("{name}.out")), &"--skip-unsupported"]);
        assert_eq!(
            (merged["layers"].as_u64(), merged["skipped"].as_array().map(Vec::len)),
            (Some(0), Some(4))
        );
        let after = load(&dir.path().join(format!("{name}.out/model.safetensors")));
        let changed = after.iter().filter(|(name, tensor)| tensor.bytes != before[*name].bytes);
        assert_eq!(changed.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["model.norm.weight"]);
    }
    // A format without a configuration has no scale for a bias.
    let bias = "model.q_proj.lora_B.bias";
    let path = write("bias.safetensors", &[(up, &[d_out, 2]), (down, &[2, d_in]), (bias, &[d_out])]);
    let says = [bias, "its scale stands in the adapter_config.json"];
    assert_merge_fails(merge(&base, &path, &dir.path().join("out"), &[]), 1, &says);
    let merged = report(&[&"merge", &base, &path, &dir.path().join("bias.out"), &"--skip-unsupported"]);
    assert_eq!((merged["layers"].as_u64(), merged["skipped"][0]["tensor"].as_str()), (Some(1), Some(bias)));
}

#[test]
fn magnitudes_that_do_not_fit_are_refused() {
    let dir = dir();
    let base = model(dir.path(), |_| ());
    let m = "base_model.model.model.q_proj.lora_magnitude_vector";
    let fails = |change: &dyn Fn(&mut File), config: &dyn Fn(&mut Value), says: &[&str]| {
        let folder = peft(dir.path(), "dora", change, config);
        assert_merge_fails(merge(&base, &folder, &dir.path().join("out"), &[]), 1, says);
        assert!(!dir.path().join("out").exists());
    };
    let without = |file: &mut File| drop(file.remove(m));
    fails(&without, &|_| (), &["has use_dora, but model.q_proj has no lora_magnitude_vector"]);
    fails(&|_| (), &|json| json["use_dora"] = false.into(), &["does not have use_dora"]);
    let folder = peft(
        dir.path(),
        "dora",
        |file| {
            file.remove(m);
            file.insert("z.foo".into(), tensor(Dtype::F32, &[2], 1));
        },
        |_| (),
    );
    let merged = merge(&base, &folder, &dir.path().join("out"), &["--skip-unsupported"]);
    assert_merge_fails(merged, 1, &["model.q_proj has no lora_magnitude_vector"]);
    let long = |file: &mut File| drop(file.insert(m.into(), tensor(Dtype::F32, &[12], 1)));
    fails(&long, &|_| (), &["model.q_proj", "has 20 outputs, but its magnitude of DoRA has 12 values"]);
    let square = |file: &mut File| drop(file.insert(m.into(), tensor(Dtype::F32, &[4, 5], 1)));
    fails(&square, &|_| (), &["is [4, 5], but a magnitude of DoRA is one row or one column"]);
    let alone = |file: &mut File| {
        file.retain(|name, _| !name.contains("q_proj.lora_A") && !name.contains("q_proj.lora_B"))
    };
    fails(&alone, &|_| (), &["model.q_proj has a magnitude of DoRA, but no factors"]);
    // A row of zeros has no direction.
    let zeros = model(dir.path(), |file| file.get_mut("model.q_proj.weight").unwrap().bytes.fill(0));
    let no_delta = |file: &mut File| {
        file.get_mut("base_model.model.model.q_proj.lora_B.weight").unwrap().bytes.fill(0);
    };
    let folder = peft(dir.path(), "dora", no_delta, |_| ());
    let merged = merge(&zeros, &folder, &dir.path().join("out.safetensors"), &[]);
    assert_merge_fails(merged, 1, &["model.q_proj.weight", "‖W + ΔW‖", "is not finite"]);
}

/// Square experts have the order of another parameter of their module, or none.
#[test]
fn square_experts_alone_are_refused() {
    let dir = dir();
    let base = model(dir.path(), |_| ());
    let out = dir.path().join("out");
    let merged = merge(&base, &extras().join("experts_square"), &out, &[]);
    assert_merge_fails(
        merged,
        1,
        &["model.square.gate_up_proj has square experts", "[E, out, in] or [E, in, out]"],
    );
    let targets = |names: &[&str]| {
        let names = json!(names);
        move |config: &mut Value| config["target_parameters"] = names.clone()
    };
    let folder = peft(dir.path(), "experts_square", |_| (), targets(&["square.down_proj"]));
    let merged = merge(&base, &folder, &out, &[]);
    assert_merge_fails(
        merged,
        1,
        &["model.square has factors of 12 × 12 with 9 ranks", "down_proj, but none or several"],
    );
    // One expert less has other factors.
    let fewer = model(dir.path(), |file| {
        file.insert("model.square.down_proj".into(), tensor(Dtype::F32, &[2, 12, 6], 1));
    });
    assert_merge_fails(merge(&fewer, &extras().join("experts"), &out, &[]), 1, &["model.square has factors"]);
    assert!(!out.exists());
}

/// GPT-2's Conv1D stays declared in a PEFT LoRA, and no other format keeps it.
#[test]
fn a_lora_keeps_fan_in_fan_out() {
    let dir = dir();
    let (base, adapter) = (model(dir.path(), |_| ()), extras().join("conv1d"));
    let [back, one, two] = ["back", "one", "two"].map(|name| dir.path().join(name));
    report(&[&"convert", &adapter, &back, &"--to", &"lora"]);
    let config: Value =
        serde_json::from_slice(&std::fs::read(back.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["fan_in_fan_out"], json!(true));
    report(&[&"merge", &base, &adapter, &one]);
    report(&[&"merge", &base, &back, &two]);
    let [one, two] = [one, two].map(|out| std::fs::read(out.join("model.safetensors")).unwrap());
    assert!(one == two);
    refused(
        &[&"convert", &adapter, &dir.path().join("ours"), &"--to", &"kron"],
        1,
        &["fan_in_fan_out is true"],
    );
}
