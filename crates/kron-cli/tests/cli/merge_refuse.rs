//! `kron merge` on what cannot be merged: one sentence, nothing under the final name.

use std::path::{Path, PathBuf};

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::{File, Tensor, golden, serialize};
use crate::models::{adapter, assert_merge_fails, merge, names, sharded, tensor};

/// A model of one file, `q.weight` of 6 × 10, and an adapter for it.
struct SmallModel {
    dir: TempDir,
    base: PathBuf,
    adapter: PathBuf,
    out: PathBuf,
}

impl SmallModel {
    fn new() -> Self {
        Self::of(
            tensor(Dtype::F32, &[6, 10], 1),
            "q",
            KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap(),
        )
    }

    fn of(weight: Tensor, module: &str, shape: KronShape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.safetensors");
        std::fs::write(&base, serialize(&File::from([("q.weight".into(), weight)]))).unwrap();
        let (adapter, _) = adapter(dir.path(), &[(module, shape)]);
        let out = dir.path().join("out.safetensors");
        Self { dir, base, adapter, out }
    }

    fn fails(&self, code: i32, says: &[&str]) {
        let before = std::fs::read(&self.base).unwrap();
        assert_merge_fails(merge(&self.base, &self.adapter, &self.out, &[]), code, says);
        assert!(!self.out.exists());
        assert_eq!(std::fs::read(&self.base).unwrap(), before, "the source is untouched");
        assert!(!names(self.dir.path()).iter().any(|name| name.ends_with(".tmp")));
    }

    fn edit(self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = std::fs::read(&self.base).unwrap();
        change(&mut bytes);
        std::fs::write(&self.base, bytes).unwrap();
        self
    }
}

#[test]
fn models_that_are_damaged() {
    SmallModel::new().edit(|bytes| bytes.truncate(5)).fails(1, &["base.safetensors", "5 bytes long"]);
    SmallModel::new().edit(|bytes| bytes.truncate(bytes.len() - 7)).fails(1, &["damaged or cut short"]);
    SmallModel::new().edit(|bytes| bytes.push(0)).fails(1, &["is damaged: its tensors end at"]);
    let bomb = |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    SmallModel::new().edit(bomb).fails(1, &["header", "18446744073709551615"]);
    SmallModel::new().edit(|bytes| bytes[8..12].copy_from_slice(b"[[[[")).fails(1, &["not safetensors JSON"]);
    let hostile = |header: &str| {
        let header = header.to_string();
        move |bytes: &mut Vec<u8>| {
            let len = header.len() as u64;
            *bytes = [&len.to_le_bytes()[..], header.as_bytes(), &[0; 240]].concat();
        }
    };
    for header in [
        // Offsets that overflow, overlap, run backwards, leave a gap, or contradict the shape.
        r#"{"q.weight":{"dtype":"F32","shape":[6,10],"data_offsets":[18446744073709551615,240]}}"#,
        r#"{"q.weight":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,240]}}"#,
        r#"{"q.weight":{"dtype":"F32","shape":[6,10],"data_offsets":[240,0]}}"#,
        r#"{"q.weight":{"dtype":"F32","shape":[3,10],"data_offsets":[120,240]}}"#,
        r#"{"q.weight":{"dtype":"F32","shape":[6,11],"data_offsets":[0,240]}}"#,
        r#"{"q.weight":{"dtype":"F32","shape":[6,10],"data_offsets":[0,240]},"p":{"dtype":"F32","shape":[6,10],"data_offsets":[0,240]}}"#,
    ] {
        SmallModel::new().edit(hostile(header)).fails(1, &["base.safetensors"]);
    }
    let mut small = SmallModel::new();
    small.base = small.dir.path().join("nowhere");
    assert_merge_fails(
        merge(&small.base, &small.adapter, &small.out, &[]),
        1,
        &["nowhere", "cannot be read"],
    );
}

#[test]
fn layers_that_match_nothing_list_near_names() {
    let model = golden().join("model_llama");
    let dir = tempfile::tempdir().unwrap();
    let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 48 }, 2).unwrap();
    let (path, _) =
        adapter(dir.path(), &[("model.layers.0.self_attn.q_prj", shape), ("transformer.h.0.c_attn", shape)]);
    let out = dir.path().join("out");
    let merged = merge(&model.join("base.safetensors"), &path, &out, &[]);
    assert_merge_fails(
        merged,
        1,
        &[
            "model.layers.0.self_attn.q_prj matches no tensor",
            "near are model.layers.0.self_attn.q_proj",
            "transformer.h.0.c_attn matches no tensor",
        ],
    );
    assert!(!out.exists());
}

/// A leading component is dropped or added for all layers, or for none.
#[test]
fn leading_components_are_not_guessed() {
    let shape = KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 2).unwrap();
    for (model, layers, says) in [
        // Two of them would do.
        (&["encoder.q", "decoder.q"][..], &["q"][..], "q matches no tensor; near are"),
        (&["q", "a.b.q"], &["b.q"], "b.q matches no tensor"),
        // One of them is right for some layers only.
        (&["h.0.q", "h.1.q"], &["t.h.0.q", "t.h.2.q"], "t.h.0.q matches no tensor"),
        (&["h.0.q", "h.1.q"], &["t.h.0.q", "u.h.1.q"], "t.h.0.q matches no tensor"),
        (&["q", "a.q", "a.k"], &["q", "k"], "k matches no tensor"),
        // Another start is another module.
        (&["b.q"], &["a.q"], "a.q matches no tensor"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let weight = |name: &&str| (format!("{name}.weight"), tensor(Dtype::F32, &[6, 10], 1));
        let base = dir.path().join("base.safetensors");
        std::fs::write(&base, serialize(&model.iter().map(weight).collect())).unwrap();
        let layers: Vec<_> = layers.iter().map(|module| (*module, shape)).collect();
        let (adapter, _) = adapter(dir.path(), &layers);
        let out = dir.path().join("out.safetensors");
        assert_merge_fails(merge(&base, &adapter, &out, &[]), 1, &[says]);
        assert!(!out.exists());
    }
}

#[test]
fn weights_that_no_layer_fits() {
    let shape = KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap();
    SmallModel::of(tensor(Dtype::F32, &[6, 9], 1), "q", shape)
        .fails(1, &["q.weight is [6, 9]", "needs [6, 10]"]);
    SmallModel::of(tensor(Dtype::F32, &[10, 6], 1), "q", shape)
        .fails(1, &["[10, 6]", "transposed", "config.json"]);
    SmallModel::of(tensor(Dtype::F32, &[2, 6, 10], 1), "q", shape)
        .fails(1, &["q.weight is stacked", "[2, 6, 10]"]);
    SmallModel::of(tensor(Dtype::F32, &[2, 6, 10], 1), "q.weight", shape).fails(1, &["stacked weights"]);
    let eight = Tensor { dtype: Dtype::F8_E4M3, shape: vec![6, 10], bytes: vec![0; 60] };
    SmallModel::of(eight, "q", shape).fails(1, &["F8_E4M3", "F32, F16 or BF16"]);
    // 6 · 10⁴ is a float16, the sum is not.
    let large = half::f16::from_f32(65504.0).to_le_bytes();
    let full = Tensor { dtype: Dtype::F16, shape: vec![600, 10], bytes: large.repeat(6000) };
    let wide = KronShape::lora(LayerDims { d_out: 600, d_in: 10 }, 8).unwrap();
    let small = SmallModel::of(full, "q", wide);
    let scaling = kron_adapter::Scaling::plain(1e6).unwrap();
    let layer = kron_adapter::Layer::new("q", scaling, kron_core::Theta::random(wide, 3)).unwrap();
    kron_adapter::Adapter::new(vec![layer])
        .unwrap()
        .write(&small.adapter, kron_adapter::IfExists::Replace)
        .unwrap();
    small.fails(1, &["q.weight", "not finite in f16"]);
}

#[test]
fn tied_heads() {
    let shape = KronShape::lora(LayerDims { d_out: 20, d_in: 6 }, 2).unwrap();
    let embedding = || ("model.embed_tokens.weight".to_string(), tensor(Dtype::F32, &[20, 6], 1));
    let head = || ("lm_head.weight".to_string(), tensor(Dtype::F32, &[20, 6], 2));
    let tied = json!({ "model_type": "llama", "tie_word_embeddings": true });
    // A file beside a configuration, which nothing can change; Gemma ties without saying so.
    for (config, module) in [
        (tied.clone(), "lm_head"),
        (tied, "model.embed_tokens"),
        (json!({ "model_type": "gemma" }), "lm_head"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let base = sharded(dir.path(), &[[embedding(), head()].into()], config);
        let base = base.join("model-00001-of-00001.safetensors");
        let (path, _) = adapter(dir.path(), &[(module, shape)]);
        let out = dir.path().join("out.safetensors");
        assert_merge_fails(merge(&base, &path, &out, &[]), 1, &["is tied"]);
        assert!(!out.exists());
    }
    let dir = tempfile::tempdir().unwrap();
    let untied = json!({ "model_type": "llama", "tie_word_embeddings": false });
    let base = sharded(dir.path(), &[[embedding(), head()].into()], untied);
    let (path, _) = adapter(dir.path(), &[("lm_head", shape)]);
    assert_eq!(merge(&base, &path, &dir.path().join("out"), &[]).0, 0);
}

#[test]
fn adapters_that_are_damaged() {
    let peft = |config: &dyn Fn(&mut Value), weights: &dyn Fn(&mut Vec<u8>), says: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let source = golden().join("model_llama");
        let text = std::fs::read(source.join("lora/adapter_config.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&text).unwrap();
        config(&mut json);
        std::fs::write(dir.path().join("adapter_config.json"), json.to_string()).unwrap();
        let mut bytes = std::fs::read(source.join("lora/adapter_model.safetensors")).unwrap();
        weights(&mut bytes);
        std::fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap();
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        assert_merge_fails(merge(&source.join("base.safetensors"), dir.path(), &out, &[]), 1, says);
        assert!(!out.exists());
    };
    let nan = |bytes: &mut Vec<u8>| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    peft(&|_| (), &nan, &["NaN", "finite"]);
    peft(&|_| (), &|bytes| bytes.truncate(100), &["cut short"]);
    peft(&|json| json["peft_type"] = "VERA".into(), &|_| (), &["VERA", "LORA and LOKR"]);
    peft(&|json| json["use_dora"] = true.into(), &|_| (), &["use_dora"]);
    peft(&|json| json["fan_in_fan_out"] = true.into(), &|_| (), &["fan_in_fan_out", "stored transposed"]);
    peft(&|json| drop(json.as_object_mut().unwrap().remove("r")), &|_| (), &["has no r"]);
    peft(&|json| json["rank_pattern"] = json!({ "(q_proj": 2 }), &|_| (), &["(q_proj"]);
    peft(&|json| json["r"] = 0.into(), &|_| (), &["rank"]);

    let small = SmallModel::new();
    let mut bytes = std::fs::read(&small.adapter).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(&small.adapter, bytes).unwrap();
    small.fails(1, &["adapter.safetensors", "inf"]);
    std::fs::remove_file(&small.adapter).unwrap();
    small.fails(1, &["adapter.safetensors"]);
}

#[test]
fn indexes_of_shards() {
    for (index, says) in [
        ("", "not an index of shards"),
        ("{}", "weight_map"),
        (r#"{"weight_map":{}}"#, "names no tensor"),
        (r#"{"weight_map":{"q.weight":"../base.safetensors"}}"#, "plain name"),
        (r#"{"weight_map":{"q.weight":"/etc/passwd"}}"#, "plain name"),
        (r#"{"weight_map":{"q.weight":"model-00002-of-00001.safetensors"}}"#, "cannot be read"),
        (r#"{"weight_map":{"p.weight":"model-00001-of-00001.safetensors"}}"#, "does not have it"),
    ] {
        let small = SmallModel::new();
        let file = File::from([("q.weight".into(), tensor(Dtype::F32, &[6, 10], 1))]);
        let base = sharded(small.dir.path(), &[file], json!({}));
        std::fs::write(base.join("model.safetensors.index.json"), index).unwrap();
        assert_merge_fails(merge(&base, &small.adapter, &small.out, &[]), 1, &[says]);
        assert!(!small.out.exists(), "{index}");
    }
    let empty = tempfile::tempdir().unwrap();
    let small = SmallModel::new();
    let merged = merge(empty.path(), &small.adapter, &small.out, &[]);
    assert_merge_fails(merged, 1, &["neither model.safetensors nor model.safetensors.index.json"]);
}

#[test]
fn places_that_are_taken() {
    let small = SmallModel::new();
    std::fs::write(&small.out, "mine").unwrap();
    assert_merge_fails(
        merge(&small.base, &small.adapter, &small.out, &[]),
        2,
        &["is there already", "--force"],
    );
    assert_eq!(std::fs::read(&small.out).unwrap(), b"mine");
    assert_eq!(merge(&small.base, &small.adapter, &small.out, &["--force"]).0, 0);
    for source in [&small.base, &small.adapter] {
        let before = std::fs::read(source).unwrap();
        assert_merge_fails(merge(&small.base, &small.adapter, source, &["--force"]), 2, &["which is read"]);
        assert_eq!(&std::fs::read(source).unwrap(), &before);
    }
    // A device or a folder is not replaced by a file, forced or not.
    for (place, says) in
        [("/dev/full", "not a regular file"), ("/dev/null", "not a regular file"), ("/", "which is read")]
    {
        let merged = merge(&small.base, &small.adapter, Path::new(place), &["--force"]);
        assert_merge_fails(merged, 2, &[place, says]);
    }
    let both = merge(&small.base, &small.adapter, &small.out, &["--force", "--resume"]);
    assert_eq!(both.0, 2);

    let file = File::from([("q.weight".into(), tensor(Dtype::F32, &[6, 10], 1))]);
    let base = sharded(small.dir.path(), &[file], json!({}));
    assert_merge_fails(
        merge(&base, &small.adapter, &small.out, &[]),
        2,
        &["is a file, but BASE is a folder"],
    );
    let full = small.dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("notes.txt"), "mine").unwrap();
    for (flags, says) in [(&[][..], "is there already"), (&["--resume"], "no unfinished merge")] {
        assert_merge_fails(merge(&base, &small.adapter, &full, flags), 2, &[says]);
    }
    assert_eq!(names(&full), ["notes.txt"]);
    assert_merge_fails(merge(&base, &small.adapter, &base, &["--force"]), 2, &["which is read"]);
}

/// A full file system, and one that cannot be written to.
#[cfg(target_os = "linux")]
#[test]
fn places_without_space() {
    let small = SmallModel::of(
        tensor(Dtype::F32, &[600, 200], 1),
        "q",
        KronShape::lora(LayerDims { d_out: 600, d_in: 200 }, 2).unwrap(),
    );
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" merge \"$1\" \"$2\" \"$3\"";
    let limited = assert_cmd::Command::new("sh")
        .args(["-c", script])
        .arg(assert_cmd::cargo::cargo_bin!("kron"))
        .args([&small.base, &small.adapter, &small.out])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{err}");
    assert!(err.contains("out.safetensors") && err.contains("File too large"), "{err}");
    assert_eq!(names(small.dir.path()), ["adapter.safetensors", "base.safetensors"]);
    // No user can write here, not even root.
    let merged = merge(&small.base, &small.adapter, Path::new("/proc/out.safetensors"), &[]);
    assert_merge_fails(merged, 1, &["/proc/out.safetensors"]);
}
