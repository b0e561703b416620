//! Names and texts from files and arguments with a terminal's commands in them: none reaches the terminal.
#![cfg(unix)]

use std::path::Path;

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::json;

use crate::adapters::{dir, peft};
use crate::golden::{File, Folder, serialize};
use crate::models::{adapter, run, sharded, tensor};

/// Colour, bell, the C1 form of an escape, a return to the line's start, and two changes of direction.
const ESCAPES: [&str; 8] =
    ["\x1b[31m", "\x07", "\u{9b}31m", "\r", "\u{202e}", "\u{2066}", "\u{2028}", "\u{200b}"];

/// Characters of [`ESCAPES`] that a terminal obeys.
fn is_obeyed(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Calls of the program that print `bad`, by its place.
fn calls(dir: &Path, bad: &str) -> Vec<(&'static str, Vec<String>)> {
    let shape = KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap();
    let (ours, _) = adapter(dir, &[("q", shape)]);
    let at = |name: &str| dir.join(name).to_str().expect("UTF-8").to_string();
    let own = ours.to_str().expect("UTF-8").to_string();
    let named = at(&format!("adapter{bad}"));
    std::fs::copy(&ours, &named).unwrap();
    let mut made = Vec::new();
    let mut call = |place, args: &[&str]| made.push((place, args.iter().map(|a| a.to_string()).collect()));

    // Names of files and folders that are read, written or missing.
    let (missing, out) = (at(&format!("missing{bad}")), at(&format!("out{bad}")));
    for command in [&["inspect"][..], &["quantise", "--bits", "4"]] {
        call("input", &[command, &[&named]].concat());
        call("missing input", &[command, &[&missing]].concat());
    }
    call("inputs", &["diff", &own, &named]);
    call("missing input", &["diff", &missing, &own]);
    call("output", &["convert", &own, &out]);
    call("existing output", &["convert", &own, &out]);
    call("page", &["inspect", &own, "--html", &named]);
    call("output that is read", &["convert", &named, &named]);
    call("output in no folder", &["convert", &own, &at(&format!("no{bad}/out"))]);
    call("missing base", &["convert", &own, &at("x"), "--base", &missing]);
    call("missing model", &["merge", &missing, &own, &at("x")]);
    call("missing configuration", &["plan", "--config", &missing]);
    call("missing folder", &["verify", &missing]);
    call("folder of pages", &["man", &missing]);

    // Arguments.
    let word = format!("a{bad}");
    call("preset", &["plan", &word]);
    call("layer", &["plan", "mistral-7b", "--layers", &word]);
    call("command", &[&word]);
    call("option", &["inspect", &format!("--x{bad}"), &own]);
    call("value", &["plan", "mistral-7b", "--rank", &word]);
    call("instruction set", &["verify", "x", "--isa", &word]);
    call("format", &["convert", &own, &at("x"), "--to", &word]);
    call("size", &["export", "--lora", &own, &at("x"), "--max-size", &word]);

    // Texts in files.
    let mut write = |place, name: &str, bytes: Vec<u8>, command: &[&str]| {
        let path = at(name);
        std::fs::write(&path, bytes).unwrap();
        call(place, &[command, &[&path]].concat());
    };
    let tensors = |names: &[String]| -> File {
        names.iter().map(|name| (name.clone(), tensor(Dtype::F32, &[6, 10], 1))).collect()
    };
    write(
        "tensor of no module",
        "t1",
        serialize(&tensors(&[format!("q.lokr_w1{bad}.lokr_w1")])),
        &["inspect"],
    );
    write("foreign tensor", "t2", serialize(&tensors(&[word.clone(), "q.lokr_w1".into()])), &["inspect"]);
    write("PEFT's tensor", "t3", serialize(&tensors(&[format!("base_model.model.{bad}")])), &["inspect"]);
    let empty = json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] });
    let dtype = json!({ "a": { "dtype": word, "shape": [0], "data_offsets": [0, 0] } });
    write("dtype", "t4", framed(&dtype.to_string()), &["inspect"]);
    write("name twice", "t5", framed(&format!("{{{0}:{empty},{0}:{empty}}}", json!(word))), &["inspect"]);
    let config = |fields: serde_json::Value| serde_json::to_vec(&fields).unwrap();
    write("family", "c1.json", config(json!({ "model_type": word })), &["plan", "--config"]);
    write("field", "c2.json", config(json!({ "model_type": "gpt2", "n_embd": word })), &["plan", "--config"]);
    let gpt2 = json!({ "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9,
        "_name_or_path": word });
    write("model's name", "c3.json", config(gpt2), &["plan", "--config"]);
    for (place, name, change) in [
        ("peft_type", "p1", json!({ "peft_type": word })),
        ("pattern", "p2", json!({ "rank_pattern": { format!("({bad}"): 1 } })),
        ("unknown field", "p3", json!({ word.clone(): 1 })),
        ("value of a field", "p4", json!({ "kasa_config": word })),
    ] {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(peft("lora").join("adapter_config.json")).unwrap())
                .unwrap();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(peft("lora").join(weights), folder.join(weights)).unwrap();
        call(place, &["inspect", folder.to_str().unwrap()]);
    }

    // A model's folder and its tensors.
    let llama = json!({ "model_type": "llama" });
    let base = sharded(dir, &[tensors(&["q.weight".into()])], llama.clone());
    std::fs::write(base.join(format!("notes{bad}.txt")), "kept").unwrap();
    std::fs::write(base.join(format!("pytorch_model{bad}.bin")), "left out").unwrap();
    let base = base.to_str().unwrap().to_string();
    call("copied and left out", &["merge", &base, &own, &at("merged")]);
    call("merged model", &["merge", &base, &own, &out, "--force"]);
    let near = dir.join("near");
    std::fs::create_dir(&near).unwrap();
    let near = sharded(&near, &[tensors(&[format!("q{bad}.weight")])], llama);
    call("nearest module", &["merge", near.to_str().unwrap(), &own, &at("x")]);
    let index = json!({ "weight_map": { "q.weight": word } });
    std::fs::write(near.join("model.safetensors.index.json"), index.to_string()).unwrap();
    call("shard", &["merge", near.to_str().unwrap(), &own, &at("x")]);
    made
}

/// A safetensors file that is only a header.
fn framed(json: &str) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

/// Returns a fault for each call that prints more lines with a line's end in the name than without.
fn broken_lines() -> Vec<String> {
    let [plain, broken] = ["b", "\n"].map(|bad| {
        let dir = dir();
        let calls = calls(dir.path(), bad);
        let lines = calls.into_iter().map(|(place, args)| {
            let (_, out, err) = run(&args);
            (place, out.lines().count() + err.lines().count(), format!("{args:?} {out} {err}"))
        });
        lines.collect::<Vec<_>>()
    });
    let pairs = plain.into_iter().zip(broken);
    // The parser of arguments repeats what the caller gave, as it is.
    let faults = pairs.filter(|(plain, broken)| plain.1 != broken.1 && !broken.2.contains("--help"));
    faults.map(|(_, (place, _, printed))| format!("{place}: {printed}")).collect()
}

#[test]
fn a_line_s_end_in_a_name_breaks_no_line() {
    let faults = broken_lines();
    assert!(faults.is_empty(), "{}:\n{}", faults.len(), faults.join("\n"));
}

/// Runs a call, and returns what is wrong with it.
fn fault(place: &str, args: &[String], bad: &str) -> Option<String> {
    let (code, out, err) = run(args);
    let what = format!("{place} {bad:?}: {args:?} exits with {code} and prints {out:?} {err:?}");
    if !(0..=2).contains(&code) || out.contains(is_obeyed) || err.contains(is_obeyed) {
        return Some(what);
    }
    let (code, json, line) = run(args.iter().cloned().chain(["--json".into()]));
    let parses = json.is_empty() || serde_json::from_str::<serde_json::Value>(&json).is_ok();
    if !(0..=2).contains(&code) || !parses || json.contains(is_obeyed) || line.contains(is_obeyed) {
        return Some(format!(
            "{place} {bad:?}: {args:?} --json exits with {code} and prints {json:?} {err:?}"
        ));
    }
    // It was met: it is replaced, quoted as in code, or removed from what the parser of arguments prints.
    let met = |text: &str| text.contains(['\u{fffd}', '\\']) || text.contains("try '--help'");
    (!met(&out) && !met(&err)).then(|| format!("not met: {what}"))
}

#[test]
fn no_command_lets_a_terminal_s_commands_through() {
    let (mut trials, mut faults) = (0, Vec::new());
    for bad in ESCAPES {
        let dir = dir();
        for (place, args) in calls(dir.path(), bad) {
            faults.extend(fault(place, &args, bad));
            trials += 1;
        }
        let named = Folder::of("o4").edit_index(|case| {
            case["file"] = case["name"].as_str().map(|name| format!("{name}.safetensors")).into();
            case["name"] = format!("o4{bad}").into();
        });
        let path = named.path().to_str().unwrap();
        faults.extend(fault("case", &["verify", path].map(String::from), bad));
        let missing = named.edit_index(|case| case["file"] = format!("x{bad}").into());
        let path = missing.path().to_str().unwrap();
        faults.extend(fault("case's file", &["verify", path].map(String::from), bad));
        trials += 2;
    }
    assert!(faults.is_empty(), "{} of {trials}:\n{}", faults.len(), faults.join("\n"));
    assert!(trials > 250, "{trials}");
}
