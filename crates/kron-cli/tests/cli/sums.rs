//! Adapters whose modules have sums of terms: what the commands make of them.

use std::path::{Path, PathBuf};

use kron_adapter::{Adapter, IfExists, Layer, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Split, Theta};
use safetensors::Dtype;

use crate::adapters::{dir, refused, report};
use crate::golden::{File, serialize};
use crate::models::{delta, load, tensor, values};

const LAYER: LayerDims = LayerDims { d_out: 24, d_in: 30 };

/// Writes an adapter of a sum of three terms for `q` and one for `k`.
fn sums(dir: &Path) -> (PathBuf, Adapter) {
    let scaling = Scaling::new(3.0, 2, ScaleRule::AlphaOverR).unwrap();
    let layer = |module: &str, term: usize, seed: u64| {
        let shape = KronShape::kron(LAYER, Split { a_out: 4, a_in: 2 }, 3).unwrap();
        Layer::new(module, scaling, Theta::random(shape, seed)).unwrap().with_term(term)
    };
    let adapter = Adapter::new(vec![layer("q", 0, 1), layer("q", 1, 2), layer("q", 2, 3), layer("k", 0, 4)]);
    let (path, adapter) = (dir.join("sums.safetensors"), adapter.unwrap());
    adapter.write(&path, IfExists::Refuse).unwrap();
    (path, adapter)
}

/// Returns ΔW of a module, and for each element the sum of its products' magnitudes.
fn summed(adapter: &Adapter, module: &str) -> Vec<(f64, f64)> {
    let mut sum = vec![(0.0, 0.0); LAYER.d_out * LAYER.d_in];
    for term in adapter.terms(module) {
        for (sum, (value, size)) in sum.iter_mut().zip(delta(term)) {
            *sum = (sum.0 + value, sum.1 + size);
        }
    }
    sum
}

#[test]
fn a_merge_adds_every_term_and_rounds_once() {
    let dir = dir();
    let (adapter, ours) = sums(dir.path());
    for (dtype, u) in [(Dtype::F32, 2f64.powi(-24)), (Dtype::BF16, 2f64.powi(-8))] {
        let (base, out) = (dir.path().join("base.safetensors"), dir.path().join(format!("{dtype}")));
        let weights = |name: &str, seed| (format!("{name}.weight"), tensor(dtype, &[24, 30], seed));
        std::fs::write(&base, serialize(&File::from([weights("q", 1), weights("k", 2), weights("v", 3)])))
            .unwrap();
        let json = report(&[&"merge", &base, &adapter, &out]);
        assert_eq!(json["layers"], 2);
        let (before, after) = (load(&base), load(&out));
        for module in ["q", "k"] {
            let name = format!("{module}.weight");
            for ((w, got), (change, size)) in
                values(&before[&name]).into_iter().zip(values(&after[&name])).zip(summed(&ours, module))
            {
                let bound = u * (w + change).abs() + 16.0 * 2f64.powi(-24) * (w.abs() + size);
                assert!((got - w - change).abs() <= bound, "{name}: {got} is not {} in {dtype}", w + change);
            }
        }
        assert_eq!(before["v.weight"].bytes, after["v.weight"].bytes);
    }
}

#[test]
fn a_sum_is_inspected_as_one_layer() {
    let dir = dir();
    let (path, ours) = sums(dir.path());
    let json = report(&[&"inspect", &path]);
    let (q, k) = (&json["layers"][0], &json["layers"][1]);
    assert_eq!(json["layers"].as_array().unwrap().len(), 2);
    assert_eq!([&q["terms"], &k["terms"]], [3, 1]);
    assert_eq!([&q["a_out"], &q["a_in"], &q["rank"], &q["max_rank"]], [4, 2, 3, 18]);
    assert_eq!(q["params"], 3 * k["params"].as_u64().unwrap());
    for (row, module) in [(q, "q"), (k, "k")] {
        let norm = summed(&ours, module).iter().map(|(v, _)| v * v).sum::<f64>().sqrt();
        let got = row["norm"].as_f64().unwrap();
        assert!((got / norm - 1.0).abs() < 1e-5, "{module}: {got}, not {norm}");
    }
    let (code, text, _) = crate::adapters::run(&[&"inspect", &path]);
    assert!(code == 0 && text.contains("3 × 4×2") && text.contains("2 layers"), "{text}");
}

#[test]
fn a_sum_converts_to_a_lora_and_to_nothing_of_one_term() {
    let dir = dir();
    let (path, ours) = sums(dir.path());
    let lora = dir.path().join("lora");
    let json = report(&[&"convert", &path, &lora, &"--to", &"lora"]);
    assert_eq!([&json["layers"][0]["lora_rank"], &json["layers"][1]["lora_rank"]], [18, 6]);
    let compared = report(&[&"diff", &path, &lora]);
    assert!(compared["total"]["relative_distance"].as_f64().unwrap() < 1e-6, "{compared}");
    assert_eq!(compared["layers"].as_array().unwrap().len(), 2);
    let copy = dir.path().join("copy.safetensors");
    report(&[&"convert", &path, &copy, &"--to", &"kron"]);
    assert_eq!(Adapter::read(&copy).unwrap(), ours);
    // Combined, it is what it was.
    let twice = dir.path().join("twice.safetensors");
    let weighted = |weight: &str| format!("{}:{weight}", path.display());
    report(&[&"combine", &weighted("2"), &weighted("-1"), &twice, &"--how", &"cat"]);
    assert!(report(&[&"diff", &path, &twice])["total"]["relative_distance"].as_f64().unwrap() < 1e-5);
    for to in ["peft-lokr", "lycoris"] {
        let out = dir.path().join(to);
        refused(
            &[&"convert", &path, &out, &"--to", &to],
            1,
            &["module q is a sum of 3 terms", "--to lora is lossless"],
        );
    }
    refused(&[&"quantise", &path, &"--bits", &"8"], 1, &["module q is a sum of 3 terms"]);
    let out = dir.path().join("linear.safetensors");
    refused(&[&"combine", &path, &out, &"--how", &"linear"], 1, &["module q is a sum of 3 terms"]);
}
