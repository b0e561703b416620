//! `kron merge` of a GGUF, into safetensors and into a GGUF.

use std::path::{Path, PathBuf};

use kron_adapter::gguf::{BlockType, Gguf, Value};
use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::json;

use crate::adapters::{dir, report, same};
use crate::golden::golden;
use crate::models::{adapter, assert_merge_fails, load, merge, names, tensor};

fn model() -> PathBuf {
    golden().join("tiny_llama.gguf")
}

/// Layers on rows that change places, and on rows that do not.
fn layers(dir: &Path) -> PathBuf {
    let shape =
        |d_out, d_in| KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 4, a_in: 2 }, 3).unwrap();
    let all = [
        ("model.layers.0.self_attn.q_proj", shape(32, 32)),
        ("model.layers.0.self_attn.k_proj", shape(16, 32)),
        ("model.layers.0.mlp.down_proj", shape(32, 64)),
    ];
    adapter(dir, &all).0
}

fn merged(adapter: &Path, out: &Path, dtype: &str) -> serde_json::Value {
    report(&[&"merge", &model(), &adapter, &out, &"--dtype", &dtype])
}

/// Writes the tensors of a GGUF under Hugging Face's names.
fn folder(gguf: &Path, out: &Path, dtype: &str) -> crate::golden::File {
    report(&[&"convert", &gguf, &out, &"--to", &"hf", &"--dtype", &dtype]);
    load(&out.join("model.safetensors"))
}

/// A merge of the GGUF is the merge of its dequantised weights, to the bit.
#[test]
fn both_outputs_are_the_merge_of_the_dequantised_model() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let adapter = layers(dir.path());
    let base = folder(&model(), &at("base"), "f32");
    let (code, _, err) = merge(&at("base/model.safetensors"), &adapter, &at("want.safetensors"), &[]);
    assert_eq!(code, 0, "{err}");
    let want = load(&at("want.safetensors"));
    assert_ne!(
        want["model.layers.0.self_attn.k_proj.weight"].bytes,
        base["model.layers.0.self_attn.k_proj.weight"].bytes
    );
    let printed = merged(&adapter, &at("got.safetensors"), "f32");
    assert_eq!((&printed["layers"], &printed["shards"]), (&json!(3), &json!(1)));
    assert_eq!(printed["bytes"], json!(std::fs::metadata(at("got.safetensors")).unwrap().len()));
    same(&load(&at("got.safetensors")), &want);
    let printed = merged(&adapter, &at("f32.gguf"), "f32");
    assert_eq!(printed["bytes"], json!(std::fs::metadata(at("f32.gguf")).unwrap().len()));
    same(&folder(&at("f32.gguf"), &at("f32"), "f32"), &want);
    // The sums are rounded once, to the type that is chosen.
    for (name, dtype) in [("f16", Dtype::F16), ("bf16", Dtype::BF16)] {
        let (file, gguf) = (at(&format!("{name}.safetensors")), at(&format!("{name}.gguf")));
        merged(&adapter, &file, name);
        merged(&adapter, &gguf, name);
        let got = load(&file);
        assert!(got.len() == want.len() && got.values().all(|tensor| tensor.dtype == dtype));
        same(&got, &folder(&at("f32.gguf"), &at(&format!("want_{name}")), name));
        same(&folder(&gguf, &at(name), name), &got);
    }
}

/// The merged file is the base's in all but the types of its tensors.
#[test]
fn a_merged_gguf_has_the_base_s_metadata() {
    let dir = dir();
    let out = dir.path().join("merged.gguf");
    let adapter = layers(dir.path());
    for (dtype, block_type, file_type) in
        [("f32", BlockType::F32, 0), ("f16", BlockType::F16, 1), ("bf16", BlockType::Bf16, 32)]
    {
        report(&[&"merge", &model(), &adapter, &out, &"--dtype", &dtype, &"--force"]);
        let (base, merged) = (Gguf::open(&model()).unwrap(), Gguf::open(&out).unwrap());
        let mut metadata = merged.metadata().clone();
        assert_eq!(metadata.remove("general.file_type"), Some(Value::Unsigned(file_type)));
        assert_eq!(&metadata, base.metadata());
        assert!(merged.tensors().keys().eq(base.tensors().keys()));
        for (name, tensor) in merged.tensors() {
            assert_eq!(tensor.shape, base.tensors()[name].shape, "{name}");
            let vector = tensor.shape.len() == 1;
            assert_eq!(tensor.block_type, if vector { BlockType::F32 } else { block_type }, "{name}");
        }
    }
    // Merged once more, from a file that is not quantised.
    let again = dir.path().join("again.gguf");
    report(&[&"merge", &out, &adapter, &again, &"--dtype", &"bf16"]);
    let [first, second] = [&out, &again].map(|path| std::fs::read(path).unwrap());
    assert!(first.len() == second.len() && first != second);
}

#[test]
fn what_cannot_be_merged_is_refused_and_nothing_is_written() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let adapter = layers(dir.path());
    let f32 = ["--dtype", "f32"];
    let refused = |out: &str, flags: &[&str], code: i32, says: &str| {
        assert_merge_fails(merge(&model(), &adapter, &at(out), flags), code, &[says]);
    };
    refused("out.gguf", &[], 2, "choose the type of the merged weights with --dtype");
    refused("out", &f32, 2, "ends in neither .safetensors nor .gguf");
    refused("out.gguf", &["--dtype", "f32", "--resume"], 2, "--resume is for folders");
    std::fs::write(
        at("base.safetensors"),
        crate::golden::serialize(&[("w".to_string(), tensor(Dtype::F32, &[2, 3], 1))].into()),
    )
    .unwrap();
    assert_merge_fails(
        merge(&at("base.safetensors"), &adapter, &at("out.safetensors"), &f32),
        2,
        &["--dtype"],
    );
    let broken = at("broken.gguf");
    let bytes = std::fs::read(model()).unwrap();
    std::fs::write(&broken, &bytes[..bytes.len() - 40]).unwrap();
    assert_merge_fails(merge(&broken, &adapter, &at("out.gguf"), &f32), 1, &["cut short"]);
    assert_merge_fails(
        merge(&broken, &adapter, &broken, &["--dtype", "f32", "--force"]),
        2,
        &["broken.gguf"],
    );
    assert_merge_fails(merge(&model(), &adapter, &adapter, &["--dtype", "f32", "--force"]), 2, &["adapter"]);
    let wrong = at("wrong");
    std::fs::create_dir(&wrong).unwrap();
    let shape = KronShape::lora(LayerDims { d_out: 4, d_in: 32 }, 1).unwrap();
    for (module, says) in [("model.embed_tokens", "is tied"), ("model.layers.1.mlp.up_proj", "layers.1")] {
        let (adapter, _) = crate::models::adapter(&wrong, &[(module, shape)]);
        assert_merge_fails(merge(&model(), &adapter, &at("out.gguf"), &f32), 1, &[says]);
    }
    let known = ["adapter.safetensors", "base.safetensors", "broken.gguf", "wrong"];
    assert_eq!(names(dir.path()), known);
    // A value beyond the type, found when half the file is written, and a file that is there.
    let large = KronShape::lora(LayerDims { d_out: 64, d_in: 32 }, 1).unwrap();
    let theta = kron_core::Theta::from_factors(large, &[], &[3e4; 64], &[3.0; 32]).unwrap();
    let layer = kron_adapter::Layer::new(
        "model.layers.0.mlp.up_proj",
        kron_adapter::Scaling::plain(1.0).unwrap(),
        theta,
    );
    let path = at("wrong/large.safetensors");
    let large = kron_adapter::Adapter::new(vec![layer.unwrap()]).unwrap();
    large.write(&path, kron_adapter::IfExists::Refuse).unwrap();
    for out in ["out.gguf", "out.safetensors"] {
        let merged = merge(&model(), &path, &at(out), &["--dtype", "f16"]);
        assert_merge_fails(merged, 1, &["up_proj.weight: row 0 holds", "not finite in f16"]);
    }
    assert_eq!(names(dir.path()), known);
    std::fs::write(at("out.gguf"), "mine").unwrap();
    refused("out.gguf", &f32, 2, "is there already");
    assert_eq!(std::fs::read(at("out.gguf")).unwrap(), b"mine");
}
