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
    refused(&args, 1, &["of 6 layers, 6 have", "--max-error 0.01", "model.layers.0.mlp.down_proj 0."]);
    assert!(!out.exists());
    let args = call(&[&"--max-error", &"1"]);
    let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|a| a as _).collect();
    let lossy = report(&args);
    let errors = lossy["layers"].as_array().unwrap().iter().map(|l| l["error"].as_f64().unwrap());
    assert!(errors.clone().count() == 6 && errors.into_iter().all(|e| (0.1..1.0).contains(&e)), "{lossy:#}");
}

/// One layer is a Kron-LoRA, the other is not; the refusal lists the errors of both.
#[test]
fn fit_s_refusal_says_every_error_and_marks_what_is_above() {
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
    let other = Theta::random(KronShape::lora(LayerDims { d_out: 48, d_in: 36 }, 6).unwrap(), 5);
    let adapter = Adapter::new(vec![fits, Layer::new("b", scaling(1.0, 6), other).unwrap()]).unwrap();
    adapter.write(&mixed, IfExists::Refuse).unwrap();
    let call: [&dyn AsRef<std::ffi::OsStr>; 10] =
        [&"convert", &mixed, &out, &"--fit", &"--a-in", &"3", &"--a-out", &"4", &"--rank", &"2"];
    let (code, _, err) = run(&call);
    assert_eq!(code, 1, "{err}");
    let errors: Vec<&str> = err.trim_end().rsplit_once(": ").unwrap().1.split(", ").collect();
    let [a, b] = errors[..] else { panic!("{err}") };
    let number = |text: &str| text.trim_end_matches('*').parse::<f64>().unwrap();
    assert!(a.starts_with("a ") && number(&a[2..]) < 1e-6 && !a.ends_with('*'), "{err}");
    assert!(b.starts_with("b ") && number(&b[2..]) > 0.1 && b.ends_with('*'), "{err}");
    assert!(err.contains("of 2 layers, 1 have") && !out.exists(), "{err}");
}
