//! `kron convert --fit`: what it recovers, and its refusals.

use kron_adapter::{Adapter, IfExists, Layer};
use kron_core::{KronShape, LayerDims, Split, Theta};

use crate::adapters::{convert, dir, ours, peft, refused, report, run, scaling};

#[test]
fn fit_recovers_a_kron_lora_and_refuses_a_lora() {
    let dir = dir();
    let (path, lora, fitted) =
        (dir.path().join("ours.safetensors"), dir.path().join("lora"), dir.path().join("fit.safetensors"));
    ours(
        &[(
            "q",
            KronShape::kron(LayerDims { d_out: 48, d_in: 36 }, Split { a_out: 4, a_in: 3 }, 2).unwrap(),
            scaling(3.0, 2),
        )],
        &path,
    );
    convert(&path, &lora, "lora");
    let sizes: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"--fit", &"--a-out", &"4", &"--a-in", &"3", &"--rank", &"2"];
    let report_fit =
        report(&[&[&"convert" as &dyn AsRef<std::ffi::OsStr>, &lora, &fitted][..], &sizes].concat());
    assert!(report_fit["layers"][0]["error"].as_f64().unwrap() < 1e-6, "{report_fit:#}");
    assert!(report(&[&"diff", &path, &fitted])["total"]["relative_distance"].as_f64().unwrap() < 1e-6);

    let out = dir.path().join("lossy.safetensors");
    let golden = peft("lora");
    let call = |rest: &[&dyn AsRef<std::ffi::OsStr>]| {
        [&[&"convert" as &dyn AsRef<std::ffi::OsStr>, &golden, &out][..], &sizes[..], rest]
            .concat()
            .iter()
            .map(|a| a.as_ref().to_owned())
            .collect::<Vec<_>>()
    };
    let args = call(&[]);
    let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as _).collect();
    refused(
        &args,
        1,
        &[
            "of 6 layers, 6 have",
            "--max-error 0.01; the largest are 0.",
            " of model.layers.1.mlp.down_proj, 0.",
        ],
    );
    assert!(!out.exists());
    let args = call(&[&"--max-error", &"1"]);
    let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as _).collect();
    let lossy = report(&args);
    let errors = lossy["layers"].as_array().unwrap().iter().map(|l| l["error"].as_f64().unwrap());
    assert!(errors.clone().count() == 6 && errors.into_iter().all(|e| (0.1..1.0).contains(&e)), "{lossy:#}");
}

/// One layer is a Kron-LoRA, the others are not; the refusal lists the largest errors of those.
#[test]
fn fit_s_refusal_lists_the_largest_errors() {
    let dir = dir();
    let [whole, lora, mixed, out] = ["whole", "lora", "mixed", "out"].map(|name| dir.path().join(name));
    ours(
        &[(
            "a",
            KronShape::kron(LayerDims { d_out: 48, d_in: 36 }, Split { a_out: 4, a_in: 3 }, 2).unwrap(),
            scaling(3.0, 2),
        )],
        &whole,
    );
    report(&[&"export", &"--lora", &whole, &lora]);
    let fits = kron_adapter::read(&lora).unwrap().adapter.layers()[0].clone();
    let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 36 }, 6).unwrap();
    let others = ["b", "c", "d", "e"].into_iter().zip(5..);
    let others =
        others.map(|(name, seed)| Layer::new(name, scaling(1.0, 6), Theta::random(shape, seed)).unwrap());
    let adapter = Adapter::new(std::iter::once(fits).chain(others).collect()).unwrap();
    adapter.write(&mixed, IfExists::Refuse).unwrap();
    let call: [&dyn AsRef<std::ffi::OsStr>; 10] =
        [&"convert", &mixed, &out, &"--fit", &"--a-in", &"3", &"--a-out", &"4", &"--rank", &"2"];
    let (code, _, err) = run(&call);
    assert_eq!(code, 1, "{err}");
    let listed: Vec<&str> = err.trim_end().split_once("the largest are ").unwrap().1.split(", ").collect();
    let errors: Vec<f64> =
        listed.iter().map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(errors.len() == 3 && errors.is_sorted_by(|x, y| x >= y) && errors[2] > 0.1, "{err}");
    assert!(listed.iter().all(|text| !text.ends_with(" of a")), "{err}");
    assert!(err.contains("of 5 layers, 4 have") && !out.exists(), "{err}");
}
