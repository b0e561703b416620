//! `kron convert`: round trips, refusals, and the older name `kron export --lora`.

use std::collections::BTreeMap;

use kron_adapter::{Adapter, ScaleRule, Scaling};
use kron_core::{Inner, KronShape, LayerDims, Outer, Split};
use serde_json::json;

use crate::adapters::{
    PEFT, config, convert, dir, ours, peft, refused, report, run, same, scaling, tensors, values,
};
use crate::golden::{File, Tensor, golden, serialize};

#[test]
fn peft_lokr_to_ours_and_back_keeps_every_bit_and_every_scale() {
    let dir = dir();
    let (kron, back) = (dir.path().join("a.safetensors"), dir.path().join("back"));
    convert(&peft("lokr"), &kron, "kron");
    convert(&kron, &back, "peft-lokr");
    let weights = "adapter_model.safetensors";
    same(&tensors(&back.join(weights)), &tensors(&peft("lokr").join(weights)));
    let (got, want) = (config(&back), config(&peft("lokr")));
    for key in ["peft_type", "r", "alpha", "decompose_factor", "decompose_both", "task_type"] {
        assert_eq!(got[key], want[key], "{key}");
    }
    let again = dir.path().join("again.safetensors");
    convert(&back, &again, "kron");
    assert_eq!(Adapter::read(&again).unwrap().layers(), Adapter::read(&kron).unwrap().layers());
}

#[test]
fn peft_lora_to_ours_and_back_keeps_every_bit() {
    for name in ["lora", "lora_rs"] {
        let dir = dir();
        let (kron, back) = (dir.path().join("a.safetensors"), dir.path().join("back"));
        convert(&peft(name), &kron, "kron");
        assert!(Adapter::read(&kron).unwrap().layers().iter().all(|l| l.shape().outer() == Outer::One));
        convert(&kron, &back, "lora");
        let weights = "adapter_model.safetensors";
        same(&tensors(&back.join(weights)), &tensors(&peft(name).join(weights)));
        let (got, want) = (config(&back), config(&peft(name)));
        for key in ["peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"] {
            assert_eq!(got[key], want[key], "{name} {key}");
        }
    }
}

/// The product of two decomposed factors is rounded, which a note tells; later conversions are exact.
#[test]
fn decomposed_w1_and_full_w2_become_ours() {
    let dir = dir();
    let (kron, back) = (dir.path().join("a.safetensors"), dir.path().join("back"));
    let report = convert(&peft("lokr_mix"), &kron, "kron");
    assert!(report["notes"][0].as_str().unwrap().contains("A of 3 layers"), "{report:#}");
    let adapter = Adapter::read(&kron).unwrap();
    let full = adapter.layers().iter().filter(|l| l.shape().inner() == Inner::Full).count();
    assert_eq!((adapter.layers().len(), full), (3, 2));
    convert(&kron, &back, "peft-lokr");
    let again = dir.path().join("again.safetensors");
    convert(&back, &again, "kron");
    for (x, y) in adapter.layers().iter().zip(Adapter::read(&again).unwrap().layers()) {
        assert_eq!((x.theta(), x.scaling().scale()), (y.theta(), y.scaling().scale()), "{}", x.module());
    }
}

/// Compares Y = X·Wᵀ + s·(X·downᵀ)·upᵀ with PEFT's outputs for the original adapter.
#[test]
fn loras_give_the_golden_outputs_from_both_sides() {
    let base = tensors(&golden().join("model_llama/base.safetensors"));
    let outputs = tensors(&golden().join("model_llama/outputs.safetensors"));
    for name in PEFT {
        for side in ["in", "out"] {
            let dir = dir();
            let lora = dir.path().join("lora");
            report(&[&"convert", &peft(name), &lora, &"--to", &"lora", &"--side", &side]);
            let kron = dir.path().join("read.safetensors");
            convert(&lora, &kron, "kron");
            for layer in Adapter::read(&kron).unwrap().layers() {
                let act = |end: &str| &outputs[&format!("{name}.act.{}.{end}", layer.module())];
                let weight = &base[&format!("{}.weight", layer.module())];
                let (x, y, w) = (values(act("x")), values(act("y")), values(weight));
                let (d_out, d_in) = (layer.shape().d_out(), layer.shape().d_in());
                assert_eq!(weight.shape, [d_out, d_in]);
                let (up, down) = (layer.theta().b(), layer.theta().c());
                let (rank, s) = (layer.shape().width(), f64::from(layer.scaling().scale().get()));
                let (mut worst, mut largest, mut moved) = (0.0f64, 0.0f64, 0.0f64);
                for (x, y) in x.chunks(d_in).zip(y.chunks(d_out)) {
                    let dot = |row: &[f32]| row.iter().zip(x).map(|(v, x)| f64::from(*v) * x).sum::<f64>();
                    let t: Vec<f64> = (0..rank).map(|k| dot(&down[k * d_in..][..d_in])).collect();
                    for (o, y) in y.iter().enumerate() {
                        let plain: f64 = w[o * d_in..][..d_in].iter().zip(x).map(|(w, x)| w * x).sum();
                        let delta: f64 = (0..rank).map(|k| f64::from(up[o * rank + k]) * t[k]).sum();
                        worst = worst.max((plain + s * delta - y).abs());
                        largest = largest.max(y.abs());
                        moved = moved.max((s * delta).abs());
                    }
                }
                assert!(worst < 4e-6 * largest, "{name} {side} {}: {worst} of {largest}", layer.module());
                assert!(moved > 1e-3 * largest, "{name} {}: the adapter does nothing", layer.module());
            }
        }
    }
}

#[test]
fn a_lora_takes_the_smaller_rank_and_is_the_same_delta() {
    let dir = dir();
    let path = dir.path().join("ours.safetensors");
    let shapes = [
        (
            "model.layers.0.q_proj",
            KronShape::kron(LayerDims { d_out: 64, d_in: 48 }, Split { a_out: 4, a_in: 2 }, 3).unwrap(),
            scaling(16.0, 3),
        ),
        (
            "model.layers.0.up_proj",
            KronShape::kron(LayerDims { d_out: 96, d_in: 48 }, Split { a_out: 2, a_in: 8 }, 5).unwrap(),
            Scaling::new(3.0, 5, ScaleRule::AlphaOverSqrtR).unwrap(),
        ),
        (
            "model.layers.1.q_proj",
            KronShape::krona(LayerDims { d_out: 64, d_in: 48 }, Split { a_out: 16, a_in: 8 }).unwrap(),
            scaling(0.1, 7),
        ),
        ("q_proj", KronShape::lora(LayerDims { d_out: 64, d_in: 48 }, 4).unwrap(), scaling(8.0, 4)),
    ];
    let adapter = ours(&shapes, &path);
    let lora = dir.path().join("lora");
    let written = report(&[&"convert", &path, &lora, &"--to", &"lora"]);
    let ranks: Vec<_> =
        written["layers"].as_array().unwrap().iter().map(|l| l["lora_rank"].clone()).collect();
    assert_eq!(ranks, [json!(6), json!(10), json!(32), json!(4)]);
    let compared = report(&[&"diff", &path, &lora]);
    for layer in compared["layers"].as_array().unwrap() {
        assert!(layer["relative_distance"].as_f64().unwrap() < 2e-7, "{layer}");
        assert!(layer["cosine"].as_f64().unwrap() > 1.0 - 1e-12 && layer["norm"].as_f64().unwrap() > 0.01);
    }
    assert_eq!(compared["layers"].as_array().unwrap().len(), adapter.layers().len());
}

/// Layers of two scales and two ranks get one r and one lora_alpha.
#[test]
fn uniform_loras_need_no_pattern() {
    let dir = dir();
    let lora = dir.path().join("lora");
    report(&[&"convert", &"--to", &"lora", &"--uniform", &peft("lokr"), &lora]);
    let config = config(&lora);
    assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({}), &json!({})));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(18), &json!(27)));
    for (name, tensor) in tensors(&lora.join("adapter_model.safetensors")) {
        assert!(tensor.shape.contains(&18), "{name}: {:?}", tensor.shape);
    }
    let compared = report(&[&"diff", &peft("lokr"), &lora]);
    for layer in compared["layers"].as_array().unwrap() {
        assert!(layer["relative_distance"].as_f64().unwrap() < 2e-7, "{layer}");
    }
}

/// `kron export --lora IN OUT` is `kron convert --to lora IN OUT`, wherever the words stand.
#[test]
fn export_is_an_older_name_of_convert_to_lora() {
    type Words<'a> = Vec<&'a dyn AsRef<std::ffi::OsStr>>;
    fn words<'a>(texts: &'a [&'a str]) -> Words<'a> {
        texts.iter().map(|text| text as _).collect()
    }
    let (dir, input) = (dir(), peft("lokr"));
    let cases = [&[][..], &["--side", "out"], &["--uniform"], &["--side", "in", "--uniform"]];
    for (i, options) in cases.into_iter().enumerate() {
        let [newer, older, last] =
            ["newer", "older", "last"].map(|name| dir.path().join(format!("{name}-{i}")));
        let call = |start: &[&'static str], paths: [&std::path::Path; 2], end: &[&'static str]| {
            let paths: Words = paths.iter().map(|path| path as _).collect();
            report(&[words(start), paths, words(options), words(end)].concat())
        };
        let mut converted = call(&["convert", "--to", "lora"], [&input, &newer], &[]);
        let exported = call(&["export", "--lora"], [&input, &older], &[]);
        call(&["export"], [&input, &last], &["--lora"]);
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            let want = std::fs::read(newer.join(name)).unwrap();
            assert!([&older, &last].iter().all(|folder| std::fs::read(folder.join(name)).unwrap() == want));
        }
        converted["output"] = exported["output"].clone();
        assert_eq!(exported, converted);
    }
    // `--json` may stand before the command, and --base takes a model's names as in convert.
    let out = dir.path().join("named");
    let base = golden().join("model_llama/base.safetensors");
    let call: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"--json", &"export", &"--lora", &"--base", &base, &input, &out];
    assert_eq!(run(&call).0, 0);
    assert!(out.join("adapter_config.json").exists());
    // Another format has another name, and without --lora nothing is written.
    for rest in [&[][..], &["--to", "kron"], &["--lora", "--to", "kron"], &["--", "--lora"]] {
        let none = dir.path().join("none");
        let call: Words = vec![&"export", &input, &none];
        let (code, ..) = run(&[call, words(rest)].concat());
        assert!(code == 2 && !none.exists());
    }
    let help = |command: &str| run(&[&command, &"--help"]);
    assert_eq!(help("export"), help("convert"));
    assert!(help("convert").1.contains("`kron export --lora IN OUT`"));
}

#[test]
fn lycoris_files_come_and_go_with_their_alpha() {
    let dir = dir();
    let path = dir.path().join("ours.safetensors");
    // Both are the nearly square splits that LyCORIS itself chooses.
    let shapes = [
        (
            "lycoris_model_layers_0_q_proj",
            KronShape::kron(LayerDims { d_out: 48, d_in: 48 }, Split { a_out: 6, a_in: 6 }, 2).unwrap(),
            scaling(3.0, 2),
        ),
        (
            "lycoris_model_layers_0_up_proj",
            KronShape::kron(LayerDims { d_out: 96, d_in: 48 }, Split { a_out: 8, a_in: 6 }, 3).unwrap(),
            scaling(0.7, 3),
        ),
        (
            "lycoris_model_layers_1_q_proj",
            KronShape::krona(LayerDims { d_out: 48, d_in: 48 }, Split { a_out: 6, a_in: 6 }).unwrap(),
            Scaling::plain(1.0).unwrap(),
        ),
    ];
    let adapter = ours(&shapes, &path);
    let (file, back) = (dir.path().join("lycoris.safetensors"), dir.path().join("back.safetensors"));
    convert(&path, &file, "lycoris");
    let stored = tensors(&file);
    let alpha = &stored["lycoris_model_layers_0_q_proj.alpha"];
    assert_eq!((&alpha.shape[..], values(alpha)), (&[][..], vec![3.0]));
    assert_eq!(stored["lycoris_model_layers_0_q_proj.lokr_w2_a"].shape, [8, 2]);
    convert(&file, &back, "kron");
    for (x, y) in adapter.layers().iter().zip(Adapter::read(&back).unwrap().layers()) {
        assert_eq!(
            (x.module(), x.theta(), x.scaling().scale()),
            (y.module(), y.theta(), y.scaling().scale())
        );
    }
}

/// s is alpha / r; without alpha, with alpha 0, and where both factors are full, s is 1.
#[test]
fn lycoris_scales_are_lycoris_s() {
    let dir = dir();
    let path = dir.path().join("file.safetensors");
    let random = |rows: usize, cols: usize| {
        Tensor::f32(&[rows, cols], (0..rows * cols).map(|i| ((i * 37 + 5) % 23) as f32 / 11.0 - 0.9))
    };
    let alpha = |v: f32| Tensor::f32(&[], [v]);
    let mut file = File::new();
    for (module, number) in
        [("a", Some(3.0)), ("b", None), ("c", Some(0.0)), ("d", Some(5.0)), ("e", Some(5.0))]
    {
        match module {
            "e" => file.extend([("e.lokr_w1_a".into(), random(4, 2)), ("e.lokr_w1_b".into(), random(2, 3))]),
            _ => file.extend([(format!("{module}.lokr_w1"), random(4, 3))]),
        }
        match module {
            "d" | "e" => file.extend([(format!("{module}.lokr_w2"), random(5, 7))]),
            _ => file.extend([
                (format!("{module}.lokr_w2_a"), random(5, 2)),
                (format!("{module}.lokr_w2_b"), random(2, 7)),
            ]),
        }
        file.extend(number.map(|v| (format!("{module}.alpha"), alpha(v))));
    }
    std::fs::write(&path, serialize(&file)).unwrap();
    let report = report(&[&"inspect", &path]);
    assert_eq!(report["format"], "lycoris-lokr");
    let scales: BTreeMap<_, _> = report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| (l["module"].as_str().unwrap(), l["scale"].as_f64().unwrap()))
        .collect();
    assert_eq!(scales, BTreeMap::from([("a", 1.5), ("b", 1.0), ("c", 1.0), ("d", 1.0), ("e", 2.5)]));
}

#[test]
fn what_a_format_cannot_say_is_refused_with_the_reason() {
    let (q, s) = ("model.q_proj", scaling(3.0, 2));
    let shape = |d_out, d_in, a_out, a_in, r| {
        KronShape::kron(LayerDims { d_out, d_in }, Split { a_out, a_in }, r).unwrap()
    };
    let krona = KronShape::krona(LayerDims { d_out: 48, d_in: 48 }, Split { a_out: 6, a_in: 6 }).unwrap();
    for (layers, to, says) in [
        (vec![(q, shape(64, 64, 16, 2, 2), s)], "peft-lokr", "none splits this one so"),
        (
            vec![(q, shape(48, 48, 6, 6, 2), s), ("k", shape(48, 48, 4, 4, 2), s)],
            "peft-lokr",
            "none splits this and those before",
        ),
        (vec![(q, shape(48, 48, 6, 6, 4), s)], "peft-lokr", "PEFT makes w2 full where"),
        (
            vec![(q, KronShape::lora(LayerDims { d_out: 48, d_in: 48 }, 4).unwrap(), s)],
            "peft-lokr",
            "it is a LoRA",
        ),
        (vec![(q, shape(64, 64, 16, 2, 2), s)], "lycoris", "LyCORIS splits the layer by"),
        (vec![(q, shape(48, 48, 6, 6, 4), s)], "lycoris", "LyCORIS makes w2 full where"),
        (vec![(q, krona, s)], "lycoris", "takes s = 1, but s is 1.5"),
        (
            vec![(q, KronShape::lora(LayerDims { d_out: 48, d_in: 48 }, 4).unwrap(), s)],
            "lycoris",
            "it is a LoRA",
        ),
        (
            vec![("a.b", shape(48, 48, 6, 6, 2), s), ("a_b", shape(48, 48, 6, 6, 2), s)],
            "lycoris",
            "two modules become the name",
        ),
    ] {
        let dir = dir();
        let (path, out) = (dir.path().join("ours.safetensors"), dir.path().join("out"));
        ours(&layers, &path);
        refused(&[&"convert", &path, &out, &"--to", &to], 1, &[says]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
    }
}

/// All layers are split by 5, and no side is a square, so that the factor has to be searched for.
#[test]
fn a_decompose_factor_is_found_where_there_is_one() {
    let dir = dir();
    let (path, out) = (dir.path().join("ours.safetensors"), dir.path().join("out"));
    let s = scaling(3.0, 2);
    ours(
        &[
            (
                "q",
                KronShape::kron(LayerDims { d_out: 60, d_in: 80 }, Split { a_out: 5, a_in: 5 }, 2).unwrap(),
                s,
            ),
            (
                "k",
                KronShape::kron(LayerDims { d_out: 36, d_in: 40 }, Split { a_out: 4, a_in: 5 }, 3).unwrap(),
                s,
            ),
        ],
        &path,
    );
    convert(&path, &out, "peft-lokr");
    let config = config(&out);
    assert_eq!(config["decompose_factor"], 5);
    let back = dir.path().join("back.safetensors");
    convert(&out, &back, "kron");
    let (before, after) = (Adapter::read(&path).unwrap(), Adapter::read(&back).unwrap());
    for layer in before.layers() {
        let same = after.layer(layer.module()).expect("the module");
        assert_eq!((layer.theta(), layer.scaling().scale()), (same.theta(), same.scaling().scale()));
    }
}

/// vLLM and mistral.rs read one rank and one alpha, no pattern, and whole names of modules.
#[test]
fn the_uniform_lora_has_the_shape_that_engines_load() {
    let dir = dir();
    let [kron, out] = ["kron", "lora"].map(|name| dir.path().join(name));
    let dims = |d_out, d_in| LayerDims { d_out, d_in };
    let shapes = [
        (
            "model.layers.0.q_proj",
            KronShape::kron(dims(12, 10), Split { a_out: 3, a_in: 2 }, 1),
            scaling(4.0, 1),
        ),
        ("model.layers.0.up_proj", KronShape::lora(dims(14, 10), 3), scaling(6.0, 3)),
    ];
    let adapter = ours(&shapes.map(|(module, shape, scaling)| (module, shape.unwrap(), scaling)), &kron);
    let call: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"export", &"--lora", &kron, &out, &"--uniform", &"--base-name", &"org/model"];
    report(&call);
    let (config, weights) = (config(&out), tensors(&out.join("adapter_model.safetensors")));
    let want = json!({ "peft_type": "LORA", "r": 3, "bias": "none", "use_dora": false, "use_rslora": false,
        "lora_bias": false, "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {},
        "base_model_name_or_path": "org/model",
        "target_modules": ["model.layers.0.q_proj", "model.layers.0.up_proj"] });
    for (field, value) in want.as_object().unwrap() {
        assert_eq!(config[field], *value, "{field}");
    }
    assert!(config["lora_alpha"].is_number());
    assert_eq!(weights.len(), 4);
    for layer in adapter.layers() {
        let shape = layer.shape();
        let factor =
            |part: &str| &weights[&format!("base_model.model.{}.lora_{part}.weight", layer.module())].shape;
        assert_eq!((factor("A"), factor("B")), (&vec![3, shape.d_in()], &vec![shape.d_out(), 3]));
    }
    let compared = report(&[&"diff", &kron, &out]);
    assert!(compared["total"]["relative_distance"].as_f64().unwrap() < 1e-6, "{compared}");
    let call: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"convert", &kron, &out, &"--to", &"lycoris", &"--base-name", &"x"];
    refused(&call, 2, &["--base-name goes with"]);
}
