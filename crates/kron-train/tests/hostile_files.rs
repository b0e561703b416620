//! Every changed field of a model's files is read or refused with one sentence: no panic, no abort, no wait.

mod common;

use std::path::{Path, PathBuf};

use common::data;
use kron_candle::Inject;
use kron_train::data::{Tokenizer, Tokens};
use kron_train::model::{Files, Weights, build};
use serde_json::{Map, Value, json};

/// Values that a field may be changed to; `None` removes it.
fn hostile() -> Vec<Option<Value>> {
    let values = [
        json!(0),
        json!(-1),
        json!(1),
        json!(7),
        json!(1u64 << 20),
        json!(1u64 << 31),
        json!(1u64 << 32),
        json!(1u64 << 62),
        json!(1u64 << 63),
        json!(u64::MAX),
        json!(1e300),
        json!(-1e300),
        json!(1e-300),
        json!(0.5),
        json!("NaN"),
        json!(""),
        json!("\u{1b}[31m\n"),
        json!([]),
        json!({}),
        json!(true),
        Value::Null,
    ];
    values.into_iter().map(Some).chain([None]).collect()
}

/// Lists the paths of all fields and elements.
fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
    let mut inner = |key: &str, value: &Value| {
        let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        all.push(at.clone());
        paths(value, &at, all);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| inner(key, value)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| inner(&i.to_string(), value));
        }
        _ => {}
    }
}

/// Calls `trial` with every file that differs from `whole` in one field; returns the number of trials.
fn each_change(whole: &Value, mut trial: impl FnMut(&str, &Value)) -> usize {
    let mut fields = Vec::new();
    paths(whole, "", &mut fields);
    let mut trials = 0;
    for field in &fields {
        for value in hostile() {
            let mut changed = whole.clone();
            let (parent, key) = field.rsplit_once('/').expect("a path");
            match (value, changed.pointer_mut(parent).expect("a parent")) {
                (Some(value), Value::Array(list)) => list[key.parse::<usize>().expect("an index")] = value,
                (Some(value), Value::Object(map)) => drop(map.insert(unescaped(key), value)),
                (None, Value::Array(list)) => drop(list.remove(key.parse().expect("an index"))),
                (None, Value::Object(map)) => drop(map.remove(&unescaped(key))),
                (_, other) => panic!("{other} has no fields"),
            }
            trial(field, &changed);
            trials += 1;
        }
    }
    trials
}

fn unescaped(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

fn json_of(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("an object")
}

/// Makes a folder with copies of a fixture's files.
fn copied(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(data("models").join(model)).expect("a fixture") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("written");
    }
    folder
}

/// Loads a model and runs a text through it.
fn load(folder: &Path) -> kron_train::Result<()> {
    let files = Files { model: folder.into(), tokenizer: PathBuf::new() };
    let weights = Weights::read(&files)?;
    let body = build(&weights, &Inject::nothing())?;
    let hidden = body.hidden(&Tokens::new(&[vec![1, 2, 3, 4, 5], vec![6, 7]]), None)?;
    Ok(body.logits(&hidden).map(drop)?)
}

/// Counts what loads; the others are refused with one sentence.
fn judge(done: kron_train::Result<()>, what: &str, loaded: &mut usize) {
    match done {
        Ok(()) => *loaded += 1,
        Err(e) => {
            let message = e.to_string();
            assert!(!message.is_empty() && message.lines().count() == 1, "{what}: {message:?}");
        }
    }
}

#[test]
fn every_changed_field_of_a_configuration_is_read_or_refused() {
    let (mut trials, mut loaded) = (0, 0);
    for model in ["bert", "distilbert", "llama", "llama3", "mistral"] {
        let folder = copied(model);
        let path = folder.path().join("config.json");
        let mut whole = json_of(&path);
        // Fields that the fixture leaves out.
        for (name, value) in [
            ("sliding_window", json!(null)),
            ("rope_theta", json!(null)),
            ("num_key_value_heads", whole.get("num_attention_heads").cloned().unwrap_or_default()),
            ("rope_scaling", json!({ "type": "linear", "factor": 2.0 })),
            ("layer_norm_eps", json!(1e-12)),
        ] {
            whole.entry(name).or_insert(value);
        }
        std::fs::write(&path, Value::Object(whole.clone()).to_string()).expect("written");
        load(folder.path()).expect(model);
        trials += each_change(&Value::Object(whole), |field, changed| {
            std::fs::write(&path, changed.to_string()).expect("written");
            judge(load(folder.path()), &format!("{model} {field}"), &mut loaded);
        });
    }
    eprintln!("{trials} changed configurations, of which {loaded} load");
    assert!(trials > 2500 && loaded > 500 && loaded < trials - 500, "{loaded} of {trials}");
}

#[test]
fn sizes_beyond_a_models_tensors_are_named() {
    for (model, field, value, want) in [
        ("llama3", "head_dim", json!(1u64 << 63), "head_dim is 9223372036854775808"),
        ("llama3", "max_position_embeddings", json!(1u64 << 40), "max_position_embeddings is 1099511627776"),
        (
            "bert",
            "num_hidden_layers",
            json!(0),
            "num_hidden_layers is 0, but it is an integer from 1 to 16384",
        ),
        (
            "mistral",
            "rms_norm_eps",
            json!(-1.0),
            "rms_norm_eps is -1.0, but it is a number from 1e-30 to 1.0",
        ),
        ("mistral", "sliding_window", json!(0), "sliding_window is 0"),
        ("llama3", "rope_parameters", json!({ "rope_theta": -1.0 }), "rope_theta is -1.0"),
    ] {
        let folder = copied(model);
        let path = folder.path().join("config.json");
        let mut config = json_of(&path);
        config.insert(field.into(), value);
        std::fs::write(&path, Value::Object(config).to_string()).expect("written");
        let message = load(folder.path()).expect_err(field).to_string();
        assert!(message.contains("config.json: ") && message.contains(want), "{message}\nwithout\n{want}");
    }
    // Claimed positions cost nothing.
    let folder = copied("llama");
    let path = folder.path().join("config.json");
    let mut config = json_of(&path);
    config.insert("max_position_embeddings".into(), json!(1u64 << 30));
    std::fs::write(&path, Value::Object(config).to_string()).expect("written");
    load(folder.path()).expect("a model of a billion positions");
}

#[test]
fn every_changed_field_of_a_header_or_index_is_read_or_refused() {
    let (mut trials, mut loaded) = (0, 0);
    let folder = copied("bert");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let len = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    trials += each_change(&header, |field, changed| {
        let json = changed.to_string();
        let whole = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &bytes[8 + len..]].concat();
        std::fs::write(&path, whole).expect("written");
        judge(load(folder.path()), field, &mut loaded);
    });
    let folder = copied("llama");
    let path = folder.path().join("model.safetensors.index.json");
    trials += each_change(&Value::Object(json_of(&path)), |field, changed| {
        std::fs::write(&path, changed.to_string()).expect("written");
        judge(load(folder.path()), field, &mut loaded);
    });
    eprintln!("{trials} changed headers and indices, of which {loaded} load");
    assert!(trials > 5000 && (20..trials / 2).contains(&loaded), "{loaded} of {trials}");
}

#[test]
fn every_changed_number_of_a_llama2c_header_is_read_or_refused() {
    let bytes = std::fs::read(data("stories260K.bin")).expect("a model");
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("m.bin");
    let (mut trials, mut loaded) = (0, 0);
    let powers = (0..31).flat_map(|i| [1i32 << i, (1i32 << i) - 1, -(1i32 << i)]);
    for value in powers.chain([i32::MIN, i32::MAX, 3, 5, 6, 12, 172, 512, -512]) {
        for field in 0..7 {
            let mut changed = bytes.clone();
            changed[4 * field..][..4].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&model, &changed).expect("written");
            let files = Files { model: model.clone(), tokenizer: PathBuf::new() };
            let done = Weights::read(&files).and_then(|w| build(&w, &Inject::nothing())).map(drop);
            judge(done, &format!("{field}: {value}"), &mut loaded);
            trials += 1;
        }
    }
    eprintln!("{trials} changed headers, of which {loaded} load");
    assert!(trials > 600 && (7..30).contains(&loaded), "{loaded} of {trials}");
}

#[test]
fn every_changed_field_of_a_tokenizer_is_read_or_refused() {
    let (mut trials, mut loaded) = (0, 0);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    for model in ["bert", "llama"] {
        let whole = Value::Object(json_of(&data("models").join(model).join("tokenizer.json")));
        trials += each_change(&whole, |field, changed| {
            std::fs::write(&path, changed.to_string()).expect("written");
            let done = Tokenizer::read(&path).and_then(|t| t.encode("Hello, the  wörld 12", 8)).map(drop);
            judge(done, &format!("{model} {field}"), &mut loaded);
        });
    }
    eprintln!("{trials} changed tokenizers, of which {loaded} load");
    assert!(trials > 5000 && loaded > 1000 && loaded < trials - 1000, "{loaded} of {trials}");
}

/// Puts a shard into the folder a second time, with and without the names that other checkpoints give its tensors.
#[test]
fn a_tensor_is_in_one_shard() {
    let folder = copied("llama");
    load(folder.path()).expect("a model");
    let path = |name: &str| folder.path().join(name);
    std::fs::remove_file(path("model.safetensors.index.json")).expect("an index");
    load(folder.path()).expect("the same shards");
    std::fs::copy(path("model-00001-of-00003.safetensors"), path("other.safetensors")).expect("written");
    let message = load(folder.path()).expect_err("doubled").to_string();
    assert!(message.contains("has two tensors \"") && message.contains("that of one tensor"), "{message}");
}

#[test]
fn an_index_names_files_of_its_folder() {
    let folder = copied("llama");
    let path = folder.path().join("model.safetensors.index.json");
    let whole = std::fs::read_to_string(&path).expect("an index");
    let shard = "model-00002-of-00003.safetensors";
    let elsewhere = tempfile::tempdir().expect("a folder");
    std::fs::copy(folder.path().join(shard), elsewhere.path().join("m.safetensors")).expect("written");
    let absolute = elsewhere.path().join("m.safetensors");
    for name in ["../m.safetensors", "/dev/zero", "a/m.safetensors", absolute.to_str().expect("Unicode")] {
        std::fs::write(&path, whole.replace(shard, name)).expect("written");
        let message = load(folder.path()).expect_err(name).to_string();
        assert!(message.contains("but a shard is a plain name"), "{message}");
    }
    std::fs::write(&path, whole.replace(shard, "missing.safetensors")).expect("written");
    assert!(load(folder.path()).expect_err("no file").to_string().contains("missing.safetensors"));
    // Hugging Face's cache holds links; they lead to regular files.
    #[cfg(unix)]
    for (to, taken) in [(absolute.as_path(), true), (Path::new("/dev/zero"), false)] {
        std::fs::write(&path, &whole).expect("written");
        std::fs::remove_file(folder.path().join(shard)).expect("a file");
        std::os::unix::fs::symlink(to, folder.path().join(shard)).expect("a link");
        let done = load(folder.path());
        assert_eq!(done.is_ok(), taken, "{done:?}");
        assert!(taken || done.expect_err("a device").to_string().contains("is not a regular file"));
    }
}
