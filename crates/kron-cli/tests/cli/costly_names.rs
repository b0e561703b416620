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

/// An adapter, a model, what a refused merge says, and true where it writes.
type Case<'a> = (&'a str, &'a str, &'a str, bool);

#[test]
fn twelve_thousand_names_take_a_second() {
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
    let cases: [Case; 18] = [
        ("towers", "model", "matches no tensor", false),
        ("towers", "model of towers", "matches no tensor", false),
        ("nested towers", "model of nested towers", "matches no tensor", false),
        ("nested towers", "model", "matches no tensor", false),
        ("parts", "model", "matches no tensor", false),
        ("parts", "flat model", "matches no tensor", false),
        ("layers", "model", "", true),
        ("layers", "flat model", "", true),
        ("other layers", "model", "matches no tensor", false),
        ("one", "model of towers", "matches no tensor", false),
        ("one", "model of nested towers", "matches no tensor", false),
        ("flat", "model", "", true),
        ("flat, other prefix", "flat model", "", true),
        ("flat, biases", "flat model", "bias", false),
        ("flat, absent", "flat model", "absent", false),
        ("flat parts", "flat model", "absent", false),
        ("flat parts", "model of towers", "matches no tensor", false),
        ("flat parts of one name", "flat model", "both have a layer", false),
    ];
    let out = path("out");
    for (adapter, base, says, writes) in cases {
        let (from, to) = (path(adapter), path(base));
        for args in [
            vec!["merge", &to, &from, &out, "--force"],
            vec!["merge", &to, &from, &out, "--force", "--skip-unsupported"],
            vec!["convert", &from, &out, "--base", &to, "--force"],
            vec!["inspect", &from],
        ] {
            let begun = Instant::now();
            let run = run_within(SECONDS, 2 * MEMORY, &args);
            let err = String::from_utf8_lossy(&run.stderr);
            eprintln!("{adapter}, {base}: {} {:?} {err:.200}", args[0], begun.elapsed());
            if args.len() == 5 && args[0] == "merge" {
                assert_eq!(run.status.success(), writes, "{adapter}, {base}: {err:.500}");
                assert!(err.contains(says), "{adapter}, {base}: {err:.500}");
            }
        }
    }
}
