//! Adapters and models with many names, of which none costs a step for each other one.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::adapters::dir;
use crate::costly::{MEMORY, SECONDS, Shape, file, peft, run_within};

/// Number of towers, parts or modules: pairs of them would be 144 million.
const NAMES: usize = 12_000;

/// Writes a LoRA of rank 1 on a 1 × 1 weight for each name.
fn loras(path: &Path, modules: impl Iterator<Item = String>) {
    let name = |module: &str, part: &str| format!("base_model.model.{module}.{part}.weight");
    let tensors = modules.flat_map(|m| [(name(&m, "lora_A"), 1, 1), (name(&m, "lora_B"), 1, 1)]);
    let tensors: Vec<Shape> = tensors.collect();
    peft(path, json!({ "peft_type": "LORA", "lora_alpha": 1 }), &tensors);
}

fn model(path: &Path, modules: impl Iterator<Item = String>) {
    let tensors: Vec<Shape> = modules.map(|module| (format!("{module}.weight"), 1, 1)).collect();
    std::fs::write(path, file(&tensors)).expect("written");
}

/// Writes LoRAs of Kohya's trainers on so many modules, and LyCORIS's changes of as many others.
fn flat(path: &Path, module: impl Fn(usize) -> String, change: &str, other: impl Fn(usize) -> String) {
    let tensors = (0..NAMES).flat_map(|i| {
        let (name, other) = (module(i), other(i));
        [
            (format!("{name}.lora_down.weight"), 1, 1),
            (format!("{name}.lora_up.weight"), 1, 1),
            (format!("{other}.{change}"), 1, 1),
        ]
    });
    std::fs::write(path, file(&tensors.collect::<Vec<_>>())).expect("written");
}

#[test]
fn twelve_thousand_names_take_seconds() {
    let dir = dir();
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_string();
    let each = |start: &'static str, end: &'static str| (0..NAMES).map(move |i| format!("{start}{i}{end}"));
    // Towers of one module each, parts of one module each, and one tower with all modules.
    loras(path("towers").as_ref(), each("a", ".layers.0.q"));
    loras(path("nested towers").as_ref(), each("m.a", ".n.layers.0.q"));
    loras(path("parts").as_ref(), each("part", ".q"));
    loras(path("layers").as_ref(), each("layers.", ".q"));
    loras(path("other layers").as_ref(), each("t.layers.", ".k"));
    loras(path("one").as_ref(), ["layers.0.q".to_string()].into_iter());
    let [known, unknown] = ["lora_unet", "mine"].map(|start| move |i: usize| format!("{start}_layers_{i}_q"));
    flat(path("flat").as_ref(), known, "diff", |i| known(NAMES + i));
    flat(path("flat, other prefix").as_ref(), unknown, "diff", |i| unknown(NAMES + i));
    flat(path("flat, biases").as_ref(), unknown, "diff_b", |i| unknown(NAMES + i));
    flat(path("flat, absent").as_ref(), unknown, "diff", |i| format!("mine_absent_{i}"));
    let part = |i: usize| format!("lora_te{i}_layers_{i}_q");
    flat(path("flat parts").as_ref(), part, "diff", |i| format!("lora_te{i}_absent"));
    let part = |i: usize| format!("lora_te{i}_layers_0_q");
    flat(path("flat parts of one name").as_ref(), part, "diff", |i| format!("lora_te{i}_absent"));
    model(path("model").as_ref(), (0..2 * NAMES).map(|i| format!("model.layers.{i}.q")));
    model(path("model of towers").as_ref(), each("b", ".layers.0.q"));
    model(path("model of nested towers").as_ref(), each("a", ".n.m.layers.0.q"));
    model(path("flat model").as_ref(), (0..2 * NAMES).map(|i| format!("layers.{i}.q")));
    let (out, mut answered, mut refused) = (path("out"), 0, 0);
    for (adapter, base) in [
        ("towers", "model of towers"),
        ("nested towers", "model of nested towers"),
        ("parts", "flat model"),
        ("layers", "model"),
        ("other layers", "model"),
        ("one", "model of towers"),
        ("flat", "model"),
        ("flat, other prefix", "flat model"),
        ("flat, biases", "flat model"),
        ("flat, absent", "flat model"),
        ("flat parts", "flat model"),
        ("flat parts of one name", "flat model"),
    ] {
        let begun = Instant::now();
        let args = ["merge", &path(base), &path(adapter), &out, "--force", "--skip-unsupported"];
        let run = run_within(2 * SECONDS, 2 * MEMORY, &args);
        let err = String::from_utf8_lossy(&run.stderr);
        eprintln!("{adapter}, {base}: {:?} {err:.200}", begun.elapsed());
        if run.status.success() { answered += 1 } else { refused += 1 }
    }
    assert!(answered > 3 && refused > 3, "{answered} answered, {refused} refused");
}
