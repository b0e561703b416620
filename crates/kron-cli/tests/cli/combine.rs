//! `kron combine` and merges of several adapters, compared with PEFT's add_weighted_adapter and with sums of ΔW.

use std::path::{Path, PathBuf};

use kron_adapter::Adapter;
use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::json;

use crate::adapters::{dir, refused, report, run};
use crate::golden::{File, golden, serialize};
use crate::models::{adapter, delta, load, tensor, values};

fn extras(name: &str) -> PathBuf {
    golden().join("extras").join(name)
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()))
}

fn read(path: &Path) -> Adapter {
    kron_adapter::read(path).unwrap().adapter
}

fn change(adapter: &Adapter, module: &str) -> Vec<f64> {
    delta(adapter.layer(module).unwrap()).into_iter().map(|(value, _)| value).collect()
}

/// The weight of a path, as an argument.
fn weighted(path: &Path, weight: &str) -> String {
    format!("{}:{weight}", path.display())
}

#[test]
fn agrees_with_add_weighted_adapter() {
    let (dir, want) = (dir(), load(&extras("combined.safetensors")));
    let [a, b] = [weighted(&extras("combine_a"), "0.7"), weighted(&extras("combine_b"), "-0.3")];
    for (name, how, options) in [
        ("cat", "cat", &[][..]),
        ("linear", "linear", &[]),
        ("ties", "ties", &["--density", "0.4"]),
        ("ties_frequency", "ties", &["--density", "0.7", "--majority", "frequency"]),
        ("magnitude_prune", "magnitude-prune", &["--density", "0.3"]),
    ] {
        for (to, out) in
            [("kron", dir.path().join(format!("{name}.safetensors"))), ("lora", dir.path().join(name))]
        {
            let args: [&dyn AsRef<std::ffi::OsStr>; 8] =
                [&"combine", &a, &b, &out, &"--how", &how, &"--to", &to];
            let options = options.iter().map(|option| option as &dyn AsRef<std::ffi::OsStr>);
            let json = report(&args.into_iter().chain(options).collect::<Vec<_>>());
            assert_eq!(
                (&json["adapters"][0]["weight"], &json["adapters"][1]["layers"]),
                (&json!(0.7), &json!(1))
            );
            assert_eq!(
                json["layers"][1],
                json!({ "module": "model.q_proj", "shape": json["layers"][1]["shape"], "adapters": 2 })
            );
            let combined = read(&out);
            for module in ["model.q_proj", "model.k_proj"] {
                let theirs = values(&want[&format!("{name}/{module}.delta")]);
                let largest = theirs.iter().fold(0.0f64, |most, v| most.max(v.abs()));
                let error = apart(&change(&combined, module), &theirs);
                // Both sides round the factors and their weights; PEFT rounds the sums of six products too.
                assert!(
                    largest > 0.01 && error <= 16.0 * 2f64.powi(-24) * largest.max(1.0),
                    "{name} {module}: {error}"
                );
            }
        }
    }
}

/// Kron-LoRAs and LoRAs of different shapes are stacked without loss, and one adapter's layer stays what it is.
#[test]
fn cat_is_the_sum_of_every_kind() {
    let dir = dir();
    let dims = LayerDims { d_out: 12, d_in: 20 };
    let kron = KronShape::kron(dims, Split { a_out: 3, a_in: 2 }, 2).unwrap();
    let krona = KronShape::krona(dims, Split { a_out: 4, a_in: 5 }).unwrap();
    let lora = KronShape::lora(dims, 3).unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    for path in &paths {
        std::fs::create_dir(path).unwrap();
    }
    let (a, first) = adapter(&paths[0], &[("q", kron), ("k", kron)]);
    let (b, second) = adapter(&paths[1], &[("q", lora), ("v", krona)]);
    let out = dir.path().join("out.safetensors");
    report(&[&"combine", &weighted(&a, "-0.5"), &weighted(&b, "2"), &out]);
    let combined = read(&out);
    let sum = |module: &str| -> Vec<f64> {
        let parts = [(&first, -0.5), (&second, 2.0)]
            .into_iter()
            .filter(|(adapter, _)| adapter.layer(module).is_some());
        parts.fold(vec![0.0; 240], |sum, (adapter, weight)| {
            sum.iter().zip(change(adapter, module)).map(|(s, v)| s + weight * v).collect()
        })
    };
    for module in ["q", "k", "v"] {
        assert!(apart(&change(&combined, module), &sum(module)) < 1e-5, "{module}");
    }
    let shape = |module: &str| *combined.layer(module).unwrap().shape();
    assert_eq!((shape("q").rank(), shape("k"), shape("v")), (Some(4 + 3), kron, krona));
    // Sums of factors are for LoRAs of one rank.
    refused(
        &[&"combine", &a, &b, &out, &"--how", &"linear", &"--force"],
        1,
        &["layer q is", "LoRAs of one rank"],
    );

    // The same sum is merged without a file.
    let base = dir.path().join("base.safetensors");
    let file: File = ["q", "k", "v"]
        .into_iter()
        .zip(1..)
        .map(|(name, seed)| (format!("{name}.weight"), tensor(Dtype::BF16, &[12, 20], seed)))
        .collect();
    std::fs::write(&base, serialize(&file)).unwrap();
    let merged = dir.path().join("merged.safetensors");
    let json = report(&[&"merge", &base, &weighted(&a, "-0.5"), &weighted(&b, "2"), &merged]);
    assert_eq!(json["layers"], json!(4));
    let after = load(&merged);
    for module in ["q", "k", "v"] {
        let name = format!("{module}.weight");
        let exact: Vec<f64> = values(&file[&name]).iter().zip(sum(module)).map(|(w, d)| w + d).collect();
        for (got, exact) in values(&after[&name]).iter().zip(exact) {
            assert!((got - exact).abs() <= 2f64.powi(-8) * exact.abs() + 1e-5, "{module}: {got} {exact}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_files() {
    let dir = dir();
    let [a, b] = [extras("combine_a"), extras("combine_b")];
    let file = |how: &str, seed: &str| {
        let out = dir.path().join("out.safetensors");
        report(&[
            &"combine",
            &a,
            &b,
            &out,
            &"--how",
            &how,
            &"--density",
            &"0.6",
            &"--seed",
            &seed,
            &"--force",
        ]);
        std::fs::read(out).unwrap()
    };
    for how in ["dare-linear", "dare-ties"] {
        assert_eq!(file(how, "7"), file(how, "7"));
        assert_ne!(file(how, "7"), file(how, "8"));
    }
    assert_ne!(file("dare-linear", "7"), file("dare-ties", "7"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = dir();
    let out = dir.path().join("out.safetensors");
    let [a, b] = [extras("combine_a"), extras("combine_b")];
    let fails = |args: &[&str], code: i32, says: &str| {
        let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|arg| arg as _).collect();
        refused(
            &[&[&"combine" as &dyn AsRef<std::ffi::OsStr>, &a, &b, &out], &args[..]].concat(),
            code,
            &[says],
        );
        assert!(!out.exists());
    };
    fails(&["--how", "ties"], 2, "--density is missing");
    fails(&["--how", "ties", "--density", "0"], 2, "the density is 0");
    fails(&["--how", "ties", "--density", "1.5"], 2, "the density is 1.5");
    fails(&["--density", "0.5"], 2, "--density goes with");
    fails(&["--seed", "1"], 2, "--seed chooses");
    fails(&["--majority", "total"], 2, "--majority goes with");
    refused(&[&"combine", &a, &extras("dora"), &out], 1, &["DoRA rescales the whole weight"]);
    refused(&[&"combine", &"no-such-adapter:0.5", &out], 1, &["no-such-adapter"]);
    let (code, _, err) = run(&[&"combine", &a]);
    assert_eq!(code, 2, "{err}");
    let merge = |args: &[&dyn AsRef<std::ffi::OsStr>], says: &str| {
        let base = extras("base.safetensors");
        refused(&[&[&"merge" as &dyn AsRef<std::ffi::OsStr>, &base], args, &[&out]].concat(), 1, &[says]);
    };
    merge(&[&weighted(&extras("dora"), "0.5")], "is a layer of DoRA");
    merge(&[&a, &extras("dora")], "changes twice, but a tensor that is replaced or rescaled by DoRA");
    merge(&[&extras("dora"), &a], "changes twice");
    merge(&[&weighted(&extras("biases"), "0.5")], "have none: model.c_attn.bias");
}

/// Values that one adapter adds to a 1×1 convolution have the rows of another's ΔW.
#[test]
fn a_convolution_takes_values_and_a_delta_in_any_order() {
    let dir = dir();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, file: &File| std::fs::write(path(name), serialize(file)).unwrap();
    let diff = File::from([("unet.q.diff".to_string(), tensor(Dtype::F32, &[3, 4, 1, 1], 1))]);
    write("diff", &diff);
    let factors = [("unet.q.lora_down.weight", [2, 4, 1, 1], 2), ("unet.q.lora_up.weight", [3, 2, 1, 1], 3)];
    let lora = factors.map(|(name, shape, seed)| (name.to_string(), tensor(Dtype::F32, &shape, seed)));
    let lora = File::from(lora);
    write("lora", &lora);
    let base = File::from([("unet.q.weight".to_string(), tensor(Dtype::F32, &[3, 4, 1, 1], 4))]);
    write("base", &base);
    let [w, d] = [(&base, "unet.q.weight"), (&diff, "unet.q.diff")].map(|(file, name)| values(&file[name]));
    let [down, up] = factors.map(|(name, ..)| values(&lora[name]));
    let exact =
        |at: usize| w[at] + d[at] + (0..2).map(|k| up[at / 4 * 2 + k] * down[k * 4 + at % 4]).sum::<f64>();
    for (i, order) in [["diff", "lora"], ["lora", "diff"]].into_iter().enumerate() {
        let out = path(&format!("out{i}"));
        report(&[&"merge", &path("base"), &path(order[0]), &path(order[1]), &out]);
        let merged = values(&load(&out)["unet.q.weight"]);
        let error = apart(&merged, &(0..12).map(exact).collect::<Vec<_>>());
        assert!(error < 1e-5, "{order:?}: {error}");
    }
}
