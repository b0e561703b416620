//! Small models and adapters, and ΔW by its definition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use kron_adapter::{Adapter, IfExists, Layer, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Theta};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::golden::{File, Tensor, kron, serialize};

/// Runs `kron` with these arguments and returns its exit code, standard output and standard error.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> (i32, String, String) {
    let out = kron().args(args).output().expect("kron runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
}

/// Runs `kron merge`.
pub fn merge(base: &Path, adapter: &Path, out: &Path, flags: &[&str]) -> (i32, String, String) {
    let paths = [base, adapter, out].map(|path| path.as_os_str().to_owned());
    run(["merge".into()].into_iter().chain(paths).chain(flags.iter().map(|flag| (*flag).into())))
}

/// Asserts that a merge failed with one sentence that contains every part of `says`.
pub fn assert_merge_fails(merged: (i32, String, String), code: i32, says: &[&str]) {
    let (got, out, err) = merged;
    assert_eq!((got, out.as_str()), (code, ""), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in: {err}");
    }
}

/// Returns a tensor of reproducible values in (−1, 1), rounded to `dtype`.
pub fn tensor(dtype: Dtype, shape: &[usize], seed: u64) -> Tensor {
    let len: usize = shape.iter().product();
    // A shape needs at least one element; an empty tensor takes none of its values.
    let values = Theta::random(KronShape::lora(LayerDims { d_out: len.max(1), d_in: 1 }, 1).unwrap(), seed)
        .b()[..len]
        .to_vec();
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        other => panic!("no tensor of {other}"),
    };
    Tensor { dtype, shape: shape.to_vec(), bytes }
}

/// Returns a tensor's values.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let bytes = &tensor.bytes;
    match tensor.dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).into()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).into()).collect(),
        other => panic!("no values of {other}"),
    }
}

/// Reads all tensors of a safetensors file.
pub fn load(path: &Path) -> File {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let own = |view: safetensors::tensor::TensorView| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(|(name, view)| (name, own(view))).collect()
}

/// Writes `adapter.safetensors` of these layers, with the scale 3 / 2.
pub fn adapter(dir: &Path, layers: &[(&str, KronShape)]) -> (PathBuf, Adapter) {
    let scaling = Scaling::new(3.0, 2, ScaleRule::AlphaOverR).unwrap();
    let layers = layers.iter().enumerate().map(|(i, &(module, shape))| {
        Layer::new(module, scaling, Theta::random(shape, i as u64 + 100)).unwrap()
    });
    let adapter = Adapter::new(layers.collect()).unwrap();
    let path = dir.join("adapter.safetensors");
    adapter.write(&path, IfExists::Replace).unwrap();
    (path, adapter)
}

/// Returns ΔW, d_out × d_in, and for each element the sum of its terms' magnitudes.
pub fn delta(layer: &Layer) -> Vec<(f64, f64)> {
    let (s, theta) = (layer.shape(), layer.theta());
    let scale = f64::from(layer.scaling().scale().get());
    let element = |row: usize, column: usize| {
        let a = f64::from(theta.a()[row / s.b_out() * s.a_in() + column / s.c_in()]);
        let (p, q) = (row % s.b_out(), column % s.c_in());
        let terms = (0..s.width()).map(|k| match s.rank() {
            Some(r) => f64::from(theta.b()[p * r + k]) * f64::from(theta.c()[k * s.c_in() + q]),
            None if k == p => f64::from(theta.c()[p * s.c_in() + q]),
            None => 0.0,
        });
        let terms: Vec<f64> = terms.map(|term| scale * a * term).collect();
        (terms.iter().sum(), terms.iter().map(|term| term.abs()).sum())
    };
    (0..s.d_out() * s.d_in()).map(|at| element(at / s.d_in(), at % s.d_in())).collect()
}

/// Writes a folder of shards with index, configuration and tokenizer.
pub fn sharded(dir: &Path, shards: &[File], config: Value) -> PathBuf {
    let base = dir.join("base");
    std::fs::create_dir(&base).unwrap();
    let mut map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        std::fs::write(base.join(&name), serialize(shard)).unwrap();
        map.extend(shard.keys().map(|tensor| (tensor.clone(), name.clone())));
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    std::fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    std::fs::write(base.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    base
}

/// Returns the names in a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
