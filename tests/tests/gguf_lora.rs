//! LoRA adapters as GGUF: what is written, read back, and refused.

use std::path::Path;

use kron_adapter::algebra::{Delta, Join, Lora};
use kron_adapter::gguf::{Gguf, GgufLora, LlamaTensors, read_lora, write_lora};
use kron_adapter::peft::LoraOptions;
use kron_adapter::{Adapter, Format, Kind, Layer, Output, Result, ScaleRule, Scaling};
use kron_core::{Dtype, KronShape, LayerDims, Split, Theta};
use kron_tests::gguf::{entry, file, llama_metadata, llama_tensors, lora_parts, text};
use kron_tests::mutate::mutate;
use kron_tests::place::Place;
use ndarray::Array2;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

/// Rows of a head of the model.
const HEAD: usize = 16;

fn base(place: &Place) -> LlamaTensors {
    let model = place.write("model.gguf", &file(&llama_metadata(), &llama_tensors()));
    Gguf::open(&model).unwrap().llama_tensors().unwrap()
}

fn base_of(place: &Place, config: &serde_json::Value) -> Result<LlamaTensors> {
    LlamaTensors::of_config(&place.write("config.json", config.to_string().as_bytes()))
}

/// Configuration of the model.
fn config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "vocab_size": 4, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "tie_word_embeddings": true,
    })
}

fn module(part: &str) -> String {
    format!("model.layers.0.{part}")
}

/// One layer of each kind. s·r of the equal LoRAs is 6, 12, 6 and 5.
fn adapter() -> Adapter {
    let dims = |d_out, d_in| LayerDims { d_out, d_in };
    let split = |a_out, a_in| Split { a_out, a_in };
    let layers = [
        ("self_attn.q_proj", KronShape::lora(dims(32, 32), 3), 6.0, 3),
        ("self_attn.k_proj", KronShape::kron(dims(16, 32), split(2, 4), 2), 6.0, 2),
        ("self_attn.v_proj", KronShape::krona(dims(16, 32), split(8, 4)), 6.0, 8),
        ("mlp.down_proj", KronShape::kron(dims(32, 64), split(4, 2), 5), 2.5, 5),
    ];
    let layers = layers.into_iter().zip(1..).map(|((part, shape, alpha, rank), seed)| {
        let scaling = Scaling::new(alpha, rank, ScaleRule::AlphaOverR).unwrap();
        Layer::new(module(part), scaling, Theta::random(shape.unwrap(), seed)).unwrap()
    });
    Adapter::new(layers.collect()).unwrap()
}

fn one(part: &str, shape: KronShape, scaling: Scaling) -> Adapter {
    Adapter::new(vec![Layer::new(part, scaling, Theta::random(shape, 1)).unwrap()]).unwrap()
}

fn lora(d_out: usize, d_in: usize, rank: usize) -> KronShape {
    KronShape::lora(LayerDims { d_out, d_in }, rank).unwrap()
}

fn write(adapter: &Adapter, base: &LlamaTensors, dtype: Dtype) -> (Vec<u8>, GgufLora) {
    let written = write_lora(adapter, base, LoraOptions::default(), dtype, &|_| Ok(())).unwrap();
    let Output::File(bytes) = &written.output else { panic!("a folder") };
    (bytes.clone(), written)
}

/// Returns ΔW and the sums of its terms' magnitudes, by the LoRA of the larger rank.
fn delta(layer: &Layer) -> (Array2<f64>, Array2<f64>) {
    let join = if Join::smaller(layer.shape()) == Join::Up { Join::Down } else { Join::Up };
    let Lora { scale, up, down } = Delta::new(layer).lora(join);
    (up.dot(&down) * scale, up.mapv(f64::abs).dot(&down.mapv(f64::abs)) * scale.abs())
}

fn matrix(gguf: &mut Gguf, name: &str) -> Vec<Vec<f32>> {
    let blocks = gguf.blocks(name).unwrap();
    let mut values = vec![0.0; blocks.rows() * blocks.columns()];
    blocks.dequantise(0..blocks.rows(), &mut values).unwrap();
    values.chunks_exact(blocks.columns()).map(<[f32]>::to_vec).collect()
}

#[test]
fn every_kind_is_read_back_with_its_delta() {
    let (place, adapter) = (Place::new(), adapter());
    let base = base(&place);
    // A factor's value is rounded once, and so is alpha.
    for (dtype, unit) in [(Dtype::F32, 2f64.powi(-24)), (Dtype::F16, 2f64.powi(-11))] {
        let (bytes, written) = write(&adapter, &base, dtype);
        assert_eq!(written.alpha, 6.0);
        assert_eq!(written.notes.len(), 1);
        assert!(written.notes[0].ends_with(": 2"), "{:?}", written.notes);
        let loaded = kron_adapter::read(place.write("lora.gguf", &bytes)).unwrap();
        assert_eq!((loaded.format, loaded.bytes), (Format::GgufLora, bytes.len() as u64));
        assert_eq!(loaded.adapter.layers().len(), 4);
        for (got, want) in loaded.adapter.layers().iter().zip(adapter.layers()) {
            assert_eq!(got.module(), want.module());
            let ((got, _), (want, terms)) = (delta(got), delta(want));
            for ((got, want), terms) in got.iter().zip(&want).zip(&terms) {
                // (1 + u)³ is below 1 + 4u; below 2^-24, float16 rounds to a multiple.
                let bound = 4.0 * unit * terms + 2f64.powi(-20) * f64::from(u8::from(dtype == Dtype::F16));
                assert!((got - want).abs() <= bound, "{dtype}: {got}, not {want}");
            }
        }
    }
}

/// A LoRA keeps its bits; B's rows of q and k are B.reshape(heads, 2, d/2, r).swapaxes(1, 2).
#[test]
fn factors_are_the_adapter_s_with_rows_in_the_model_s_order() {
    let place = Place::new();
    let base = base(&place);
    for (part, source, heads, permuted) in [
        ("self_attn.q_proj", "attn_q", 2, true),
        ("self_attn.k_proj", "attn_k", 1, true),
        ("self_attn.v_proj", "attn_v", 1, false),
        ("self_attn.o_proj", "attn_output", 2, false),
    ] {
        let scaling = Scaling::new(3.0, 3, ScaleRule::AlphaOverSqrtR).unwrap();
        let adapter = one(&module(part), lora(heads * HEAD, 32, 3), scaling);
        let (bytes, written) = write(&adapter, &base, Dtype::F32);
        assert!((written.alpha - 27f32.sqrt()).abs() < 1e-6 && written.notes.is_empty());
        let mut gguf = Gguf::open(&place.write("lora.gguf", &bytes)).unwrap();
        for (key, value) in
            [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")]
        {
            assert_eq!(gguf.value(key).unwrap().as_str(), Some(value));
        }
        assert_eq!(gguf.value("adapter.lora.alpha").unwrap().as_f64(), Some(written.alpha.into()));
        let theta = adapter.layers()[0].theta();
        let (a, b) = (theta.c().chunks_exact(32), theta.b().chunks_exact(3).collect::<Vec<_>>());
        assert!(matrix(&mut gguf, &format!("blk.0.{source}.weight.lora_a")).iter().eq(a));
        let mut rows = Vec::new();
        for head in 0..heads {
            for pair in 0..HEAD / 2 {
                rows.extend([0, 1].map(|half| b[head * HEAD + half * (HEAD / 2) + pair]));
            }
        }
        let want = if permuted { rows } else { b };
        assert_eq!(matrix(&mut gguf, &format!("blk.0.{source}.weight.lora_b")), want, "{part}");
        let again = read_lora(&place.path("lora.gguf")).unwrap().adapter;
        assert_eq!(again.layers()[0].theta(), theta);
    }
}

/// A Qwen's GGUF has the rows of q and k in Hugging Face's order, so that nothing moves and nothing has to be told.
#[test]
fn a_qwen_s_rows_stay() {
    let place = Place::new();
    for kind in ["qwen2", "qwen3"] {
        let mut config = config();
        (config["model_type"], config["head_dim"]) = (kind.into(), HEAD.into());
        let base = base_of(&place, &config).unwrap();
        let scaling = Scaling::new(3.0, 3, ScaleRule::AlphaOverR).unwrap();
        let adapter = one(&module("self_attn.q_proj"), lora(2 * HEAD, 32, 3), scaling);
        let (bytes, _) = write(&adapter, &base, Dtype::F32);
        let mut gguf = Gguf::open(&place.write("lora.gguf", &bytes)).unwrap();
        assert_eq!(gguf.value("general.architecture").unwrap().as_str(), Some(kind));
        assert!(!gguf.metadata().keys().any(|key| key.ends_with("key_length")));
        let theta = adapter.layers()[0].theta();
        let b = matrix(&mut gguf, "blk.0.attn_q.weight.lora_b");
        assert!(b.iter().map(Vec::as_slice).eq(theta.b().chunks_exact(3)));
        assert_eq!(read_lora(&place.path("lora.gguf")).unwrap().adapter.layers()[0].theta(), theta);
    }
}

/// The commonest s·r is the file's alpha; a power of two as a ratio changes no digit.
#[test]
fn other_scales_go_into_b() {
    let place = Place::new();
    let layers = [("gate_proj", 2.0), ("up_proj", 8.0), ("gate_proj", 2.0), ("up_proj", 0.0)];
    let layers = layers.into_iter().enumerate().map(|(block, (part, alpha))| {
        let scaling = Scaling::new(alpha, 2, ScaleRule::AlphaOverR).unwrap();
        let module = format!("model.layers.{block}.mlp.{part}");
        Layer::new(module, scaling, Theta::random(lora(64, 32, 2), 7)).unwrap()
    });
    let adapter = Adapter::new(layers.collect()).unwrap();
    let mut config = config();
    config["num_hidden_layers"] = 4.into();
    let (bytes, written) = write(&adapter, &base_of(&place, &config).unwrap(), Dtype::F32);
    assert_eq!(written.alpha, 2.0);
    let again = read_lora(&place.write("lora.gguf", &bytes)).unwrap().adapter;
    for (layer, ratio) in again.layers().iter().zip([1.0, 4.0, 1.0, 0.0]) {
        assert_eq!(f64::from(layer.scaling().scale().get()), 1.0);
        let [got, want] = [layer, &adapter.layers()[0]].map(Layer::theta);
        assert_eq!(got.c(), want.c());
        assert!(got.b().iter().zip(want.b()).all(|(got, want)| *got == ratio * want));
    }
    // Of scales that are all zero the alpha is not, which llama.cpp would take for a missing one.
    let none = one(&module("mlp.up_proj"), lora(64, 32, 2), Scaling::plain(0.0).unwrap());
    let (bytes, written) = write(&none, &base(&place), Dtype::F32);
    assert_eq!(written.alpha, 1.0);
    let again = read_lora(&place.write("lora.gguf", &bytes)).unwrap().adapter;
    assert!(again.layers()[0].theta().b().iter().all(|v| *v == 0.0));
}

#[test]
fn a_configuration_gives_the_same_file_as_the_model() {
    let (place, adapter) = (Place::new(), adapter());
    let of_model = write(&adapter, &base(&place), Dtype::F32).0;
    for kind in ["llama", "mistral"] {
        let mut config = config();
        config["model_type"] = kind.into();
        assert!(write(&adapter, &base_of(&place, &config).unwrap(), Dtype::F32).0 == of_model);
    }
    let refused = |key: &str, value: serde_json::Value, says: &str| {
        let mut config = config();
        config[key] = value;
        let error = base_of(&place, &config).expect_err(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    };
    refused("model_type", "gpt2".into(), "model_type is \"gpt2\"");
    refused("hidden_size", serde_json::Value::Null, "lacks the field hidden_size");
    refused("hidden_size", 0.into(), "hidden_size is not a whole number from 1");
    refused("num_hidden_layers", 4097.into(), "num_hidden_layers is not a whole number from 1 to 4096");
    refused("num_attention_heads", 64.into(), "no LLaMA's");
    refused("num_key_value_heads", 3.into(), "3 key heads");
    refused("head_dim", 15.into(), "15 rows");
    refused("tie_word_embeddings", 1.into(), "tie_word_embeddings is not a boolean");
    let text = LlamaTensors::of_config(&place.write("config.json", b"{")).unwrap_err().to_string();
    assert!(text.contains("is not JSON"), "{text}");
    assert!(LlamaTensors::of_config(Path::new("/nowhere/config.json")).is_err());
}

#[test]
fn what_the_file_cannot_hold_is_refused() {
    let place = Place::new();
    let (tied, mut config) = (base(&place), config());
    config["tie_word_embeddings"] = false.into();
    let untied = base_of(&place, &config).unwrap();
    let scaling = Scaling::plain(0.5).unwrap();
    let refused = |adapter: &Adapter, base: &LlamaTensors, options: LoraOptions, dtype: Dtype, says: &str| {
        let error = write_lora(adapter, base, options, dtype, &|_| Ok(())).expect_err(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    };
    let plain = |adapter: &Adapter, base: &LlamaTensors, says: &str| {
        refused(adapter, base, LoraOptions::default(), Dtype::F32, says);
    };
    let embedding = one("model.embed_tokens", lora(4, 32, 2), scaling);
    plain(&embedding, &untied, "is an embedding");
    plain(&embedding, &tied, "is tied");
    assert!(write(&one("lm_head", lora(4, 32, 2), scaling), &untied, Dtype::F32).0.len() > 100);
    plain(&one(&module("self_attn.qkv_proj"), lora(32, 32, 2), scaling), &tied, "qkv_proj");
    plain(&one(&module("mlp.up_proj"), lora(63, 32, 2), scaling), &tied, "[64, 32]");
    plain(&one(&module("input_layernorm"), lora(32, 1, 1), scaling), &tied, "input_layernorm");
    let up = |scaling| one(&module("mlp.up_proj"), lora(64, 32, 2), scaling);
    refused(&up(scaling), &tied, LoraOptions::default(), Dtype::Bf16, "f32 or f16, not bf16");
    plain(&up(Scaling::plain(f32::MAX).unwrap()), &tied, "beyond float32");
    let tight = LoraOptions { max_bytes: Some(700), ..LoraOptions::default() };
    refused(&up(scaling), &tied, tight, Dtype::F32, "the limit is 700 bytes");
    let with = |value: f32| {
        let theta = Theta::from_factors(lora(64, 32, 1), &[], &[1.0; 64], &[value; 32]).unwrap();
        Adapter::new(vec![Layer::new(module("mlp.up_proj"), scaling, theta).unwrap()]).unwrap()
    };
    refused(&with(7e4), &tied, LoraOptions::default(), Dtype::F16, "beyond f16");
    plain(&with(f32::NAN), &tied, "NaN");
    let stopped = write_lora(&up(scaling), &tied, LoraOptions::default(), Dtype::F32, &|_| {
        Err(kron_adapter::Error::data("stopped"))
    });
    assert_eq!(stopped.unwrap_err().to_string(), "stopped");
}

#[test]
fn files_that_are_no_adapter_are_refused_with_their_reason() {
    let place = Place::new();
    let read = |bytes: &[u8]| kron_adapter::read(place.write("damaged.gguf", bytes));
    let (entries, tensors) = lora_parts();
    let scale = |bytes: &[u8]| f64::from(read(bytes).unwrap().adapter.layers()[0].scaling().scale().get());
    assert_eq!(scale(&file(&entries, &tensors)), 2.0);
    // Without alpha, and with 0 in its place, s is 1.
    let without = |at: usize| [&entries[..at], &entries[at + 1..]].concat();
    let with = |at: usize, entry: Vec<u8>| [without(at), vec![entry]].concat();
    assert_eq!(scale(&file(&without(3), &tensors)), 1.0);
    assert_eq!(scale(&file(&with(3, entry("adapter.lora.alpha", 6, &[0; 4])), &tensors)), 1.0);
    let renamed = |at: usize, name: &str| {
        let mut tensors = tensors.clone();
        tensors[at].name = name.into();
        tensors
    };
    let shaped = |at: usize, shape: &[u64]| {
        let mut tensors = tensors.clone();
        tensors[at].shape = shape.into();
        tensors[at].bytes = vec![0; 4 * shape.iter().product::<u64>() as usize];
        tensors
    };
    let mut nan = tensors.clone();
    nan[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let moved = ["a", "b"].map(|half| format!("blk.0.attn_v.weight.lora_{half}"));
    let both = [renamed(0, &moved[0])[0].clone(), renamed(1, &moved[1])[1].clone()];
    assert_eq!(scale(&file(&without(4), &both)), 2.0);
    let embedding = ["a", "b"].map(|half| format!("token_embd.weight.lora_{half}"));
    let embedding = [renamed(0, &embedding[0])[0].clone(), renamed(1, &embedding[1])[1].clone()];
    let number = |key: &str, n: u32| entry(key, 4, &n.to_le_bytes());
    for (bytes, says) in [
        (
            file(&llama_metadata(), &llama_tensors()),
            "is not a known adapter: general.type is missing, not \"adapter\"",
        ),
        (file(&without(1), &tensors), "adapter.type is"),
        (file(&with(2, entry("general.architecture", 8, &text("gemma"))), &tensors), "is \"gemma\""),
        (file(&with(3, entry("adapter.lora.alpha", 8, &text("4"))), &tensors), "not a floating-point number"),
        (file(&with(3, entry("adapter.lora.alpha", 6, &f32::NAN.to_le_bytes())), &tensors), "NaN"),
        (file(&with(4, number("llama.attention.key_length", 15)), &tensors), "not an even number"),
        (file(&with(4, number("llama.attention.key_length", 64)), &tensors), "a divisor of 32"),
        (file(&without(4), &tensors), "llama.attention.key_length has to tell"),
        (file(&entries, &tensors[..1]), "lacks .lora_a or .lora_b"),
        (file(&entries, &renamed(0, "blk.0.attn_q.weight")), "is no factor"),
        (
            file(&entries, &[renamed(0, "q_proj.lora_a"), renamed(1, "q_proj.lora_b")].map(|t| t[0].clone())),
            "q_proj",
        ),
        (file(&entries, &embedding), "no linear layer"),
        (file(&entries, &shaped(0, &[3, 32])), "ranks 3 and 2"),
        (file(&entries, &shaped(0, &[64])), "no matrices"),
        (file(&entries, &nan), "not finite"),
        (file(&entries, &[]), ""),
    ] {
        let error = read(&bytes).expect_err(says);
        assert_eq!(error.kind(), Kind::Data);
        let error = error.to_string();
        assert!(error.contains("damaged.gguf") && error.contains(says), "{says:?} is not in {error}");
    }
}

/// Every byte of the header set to several values, and random damage: a file is read or refused.
#[test]
fn no_damage_makes_it_panic() {
    let (place, mut rng) = (Place::new(), Pcg64Mcg::seed_from_u64(5));
    let (entries, tensors) = lora_parts();
    let plain = file(&entries, &tensors);
    let header = plain.len() - tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
    let (mut read, mut refused) = (0, 0);
    let mut attempt = |bytes: &[u8]| match read_lora(&place.write("damaged.gguf", bytes)) {
        Ok(loaded) => {
            assert!(4 * loaded.adapter.params() <= bytes.len(), "values out of nothing");
            read += 1;
        }
        Err(error) => {
            assert_eq!(error.message().lines().count(), 1, "{error}");
            refused += 1;
        }
    };
    for at in 0..header {
        for value in [0, 1, 127, 255] {
            let mut bytes = plain.clone();
            bytes[at] = value;
            attempt(&bytes);
        }
    }
    for _ in 0..2000 {
        attempt(&mutate(&plain, &plain, &mut rng));
    }
    assert!(read > 300 && refused > 1000, "{read} read, {refused} refused");
}
