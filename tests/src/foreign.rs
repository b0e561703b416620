//! Files of others as the program meets them, several packed into one string of bytes: what the
//! fuzz target `cli` starts from, and what it calls.
//!
//! ```text
//! kind (1 byte) · length of the first file (4 bytes, little-endian) · first file · second file
//! ```

use std::collections::HashMap;
use std::path::Path;

use kron_adapter::Adapter;
use kron_adapter::OutputFormat;
use kron_adapter::ReadOptions;
use kron_adapter::algebra::Delta;
use kron_adapter::peft::LoraOptions;
use kron_adapter::resolve::{BaseModel, resolve_module_names};
use kron_adapter::{Layer, Scaling};
use kron_cli::inspect::Diagnosis;
use kron_cli::model::{Base, Config, linear_layers, scanned_layers};
use kron_core::{KronShape, LayerDims, Theta};
use rand::RngExt;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::merging;
use crate::mutate::mutate;

/// The folder of the packed seeds.
pub const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/cli");

/// Formats of the files, and their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A PEFT folder: configuration and weights.
    Peft,
    /// One adapter file, ours or LyCORIS's.
    File,
    /// A model's configuration.
    Config,
    /// A sharded model: index and shard.
    Model,
}

const KINDS: [(Kind, [&str; 2]); 4] = [
    (Kind::Peft, ["adapter_config.json", "adapter_model.safetensors"]),
    (Kind::File, ["adapter.safetensors", ""]),
    (Kind::Config, ["config.json", ""]),
    (Kind::Model, ["model.safetensors.index.json", "model.safetensors"]),
];

/// Packs files.
pub fn pack(kind: Kind, first: &[u8], second: &[u8]) -> Vec<u8> {
    let number = KINDS.iter().position(|(other, _)| *other == kind).unwrap_or(0) as u8;
    [&[number][..], &(first.len() as u32).to_le_bytes(), first, second].concat()
}

/// Takes packed files apart: any bytes are some.
pub fn unpack(packed: &[u8]) -> (Kind, [&[u8]; 2]) {
    let (kind, rest) = packed.split_first().unwrap_or((&0, &[]));
    let (len, rest) = rest.split_first_chunk::<4>().unwrap_or((&[0; 4], rest));
    let (first, second) = rest.split_at((u32::from_le_bytes(*len) as usize).min(rest.len()));
    (KINDS[usize::from(*kind) % KINDS.len()].0, [first, second])
}

/// Writes packed files into `folder`, reads them as the program does, and returns true if they
/// were accepted. An accepted adapter is also written in every format, merged and combined.
///
/// # Panics
/// A reader panicked, which is what a fuzzer looks for; `folder` cannot be written; or a written
/// file cannot be read again.
pub fn read_any(folder: &Path, packed: &[u8]) -> bool {
    let (kind, files) = unpack(packed);
    let names = KINDS.iter().find(|(other, _)| *other == kind).map_or(["", ""], |(_, names)| *names);
    for (name, bytes) in names.into_iter().zip(files).filter(|(name, _)| !name.is_empty()) {
        std::fs::write(folder.join(name), bytes).expect("a folder that can be written");
    }
    let first = folder.join(names[0]);
    let diagnosed = |error: kron_adapter::Error, path: &Path| {
        let diagnosis = Diagnosis::of(path, &ReadOptions::default(), error);
        diagnosis.map_or_else(|error| error, |diagnosis| kron_adapter::Error::data(diagnosis.table()))
    };
    let is_merged = match kind {
        Kind::Peft => merging::read_any(folder, packed.len()),
        Kind::File => merging::read_any(&first, packed.len()),
        Kind::Config | Kind::Model => false,
    };
    let read = match kind {
        Kind::Peft => kron_adapter::read(folder)
            .map(|loaded| write_all(&loaded.adapter))
            .map_err(|error| diagnosed(error, folder)),
        Kind::File => kron_adapter::read(&first)
            .map(|loaded| write_all(&loaded.adapter))
            .map_err(|error| diagnosed(error, &first)),
        Kind::Config => Config::read(&first).and_then(|config| {
            config.transposed("h.0.attn.c_attn");
            config.tied()?;
            linear_layers(&config).map(drop)
        }),
        Kind::Model => Base::open(folder).map(|base| {
            assert!(base.modules().count() <= base.tensor_names().count());
            drop(scanned_layers(&base));
            // Names of another's adapter are matched with whatever names the model has.
            for adapter in others() {
                drop(resolve_module_names(&adapter, &base));
            }
        }),
    };
    read.map_err(|error| {
        let message = error.to_string();
        assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
    })
    .is_ok()
        || is_merged
}

/// Packed files with one to three places damaged, by the same seed the same ones.
pub fn damaged(seeds: &[(String, Vec<u8>)], rng: &mut impl RngExt) -> Vec<u8> {
    let mut any = || &seeds[rng.random_range(0..seeds.len())].1;
    let (packed, other) = (any().clone(), any().clone());
    let (kind, [first, second]) = unpack(&packed);
    let (_, [lent, _]) = unpack(&other);
    let half = !second.is_empty() && rng.random();
    match (half, kind) {
        (true, _) => pack(kind, first, &mutate(second, lent, rng)),
        (false, Kind::File) => pack(kind, &mutate(first, lent, rng), second),
        (false, _) => {
            // As the header of a file without tensors: what is damaged is the JSON.
            let framed = [&(first.len() as u64).to_le_bytes(), first].concat();
            let damaged = mutate(&framed, lent, rng);
            pack(kind, damaged.get(8..).unwrap_or_default(), second)
        }
    }
}

/// Most bytes of LoRAs, and multiply-adds of a layer's singular values: a fuzzer makes many small files.
const SMALL: u64 = 1 << 18;

fn write_all(adapter: &Adapter) {
    let bytes = adapter.to_bytes().expect("values that were read are finite");
    assert!(Adapter::from_bytes(&bytes).expect("what we wrote").layers() == adapter.layers());
    for layer in adapter.layers() {
        let values = Delta::new(layer).singular_values_within(SMALL.into());
        assert!(values.is_none_or(|values| values.len() <= layer.shape().max_rank()), "{}", layer.shape());
    }
    let lora = |uniform| {
        OutputFormat::Lora(LoraOptions { uniform, max_bytes: Some(SMALL), ..LoraOptions::default() })
    };
    for to in [lora(false), lora(true), OutputFormat::PeftLokr, OutputFormat::Lycoris] {
        if let Ok(output) = to.encode(adapter, &|_| Ok(())) {
            assert!(output.bytes() <= 4 * SMALL + 64 * bytes.len() as u64, "{} bytes", output.bytes());
        }
    }
}

/// A name, and packed files that are accepted.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let q = "base_model.model.model.layers.0.q";
    let lokr = [
        (format!("{q}.lokr_w1"), [3, 2]),
        (format!("{q}.lokr_w2_a"), [4, 1]),
        (format!("{q}.lokr_w2_b"), [1, 5]),
        ("base_model.model.k.lokr_w1_a".into(), [3, 1]),
        ("base_model.model.k.lokr_w1_b".into(), [1, 2]),
        ("base_model.model.k.lokr_w2".into(), [2, 2]),
    ];
    let lora = [(format!("{q}.lora_A.weight"), [2, 5]), (format!("{q}.lora_B.weight"), [4, 2])];
    let lycoris = [
        ("lycoris_a_q.lokr_w1".to_string(), vec![3, 2]),
        ("lycoris_a_q.lokr_w2_a".into(), vec![4, 1]),
        ("lycoris_a_q.lokr_w2_b".into(), vec![1, 5]),
        ("lycoris_a_q.alpha".into(), vec![]),
    ];
    let kohya = [
        ("lora_unet_a_q.lora_down.weight".to_string(), vec![2, 5, 1, 1]),
        ("lora_unet_a_q.lora_up.weight".into(), vec![4, 2, 1, 1]),
        ("lora_unet_a_q.alpha".into(), vec![1, 1]),
        ("lora_te1_a_q.lokr_w1".into(), vec![3, 2]),
        ("lora_te1_a_q.lokr_w2".into(), vec![2, 2]),
    ];
    let diffusers = [
        ("transformer.a.0.q.lora_A.weight".to_string(), vec![2, 5]),
        ("transformer.a.0.q.lora_B.weight".into(), vec![4, 2]),
        ("unet.a.0.q.lora.down.weight".into(), vec![1, 5]),
        ("unet.a.0.q.lora.up.weight".into(), vec![4, 1]),
    ];
    let part = json!({ "transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": "(?x)\n q",
        "transformer.alpha_pattern": { "a\\.(?!1\\.).*q": 2 } });
    let metadata = [("lora_adapter_metadata", part.to_string())];
    let wrapped = [
        ("_orig_mod.base_model.model.a.0.q.lora_A.default.weight".to_string(), [2, 5]),
        ("base_model.model._fsdp_wrapped_module.a.0.q.lora_B.default.weight".into(), [4, 2]),
        ("score.modules_to_save.default.weight".into(), [2, 3]),
        ("score.original_module.weight".into(), [2, 3]),
    ];
    let wrapped_config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["score"],
        "rank_pattern": { "(?=a)a.*q": 2 }, "bias": "lora_only", "init_lora_weights": "mica" });
    let shard = file(&[("q.weight".to_string(), vec![4, 5]), ("norm.bias".into(), vec![3])]);
    let index = json!({ "metadata": { "total_size": 92 }, "weight_map": {
        "q.weight": "model.safetensors", "norm.bias": "model.safetensors" } });
    let lokr_config = json!({ "peft_type": "LOKR", "r": 1, "alpha": 3, "decompose_both": true,
        "decompose_factor": -1, "rank_pattern": { "^k": 1 }, "alpha_pattern": { "layers.0.*": 2.5 },
        "target_modules": ["q", "k"], "base_model_name_or_path": "toy", "bias": "none" });
    let lora_config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 16, "use_rslora": true,
        "fan_in_fan_out": false, "modules_to_save": null, "target_modules": ".*q", "init_lora_weights": true });
    let mut seeds = vec![
        ("peft-lokr".to_string(), pack(Kind::Peft, &text(&lokr_config), &file(&two(&lokr)))),
        ("peft-lora".into(), pack(Kind::Peft, &text(&lora_config), &file(&two(&lora)))),
        ("lycoris".into(), pack(Kind::File, &file(&lycoris), &[])),
        ("kohya".into(), pack(Kind::File, &file(&kohya), &[])),
        ("diffusers".into(), pack(Kind::File, &file_with(&diffusers, &metadata), &[])),
        ("peft-wrapped".into(), pack(Kind::Peft, &text(&wrapped_config), &file(&two(&wrapped)))),
        ("model".into(), pack(Kind::Model, &text(&index), &shard)),
    ];
    let (_, ours) = crate::adapters::seeds().pop().expect("an adapter of all kinds");
    seeds.push(("ours".into(), pack(Kind::File, &ours.to_bytes().expect("finite numbers"), &[])));
    seeds.extend(configs().into_iter().map(|config| {
        let name = format!("config-{}", config["model_type"].as_str().unwrap_or_default());
        (name, pack(Kind::Config, &text(&config), &[]))
    }));
    seeds.extend(extras());
    seeds
}

/// Adapters that hold more than ΔW, made by PEFT, and a folder with two adapters.
fn extras() -> impl Iterator<Item = (String, Vec<u8>)> {
    let read = |path: String| std::fs::read(format!("{}/{path}", merging::EXTRAS)).expect("a golden file");
    let named = ["a", "default"].into_iter().flat_map(|adapter| {
        let name = move |part: &str| format!("base_model.model.model.q.lora_{part}.{adapter}.weight");
        [(name("A"), vec![2, 5]), (name("B"), vec![4, 2])]
    });
    let two = file(&named.collect::<Vec<_>>());
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4 });
    let folders = [
        "biases",
        "combine_a",
        "conv1d",
        "dora",
        "dora_conv1d",
        "dora_embedding",
        "embedding",
        "experts",
        "experts_square",
        "lora_bias",
        "tokens",
    ];
    let peft = folders.into_iter().map(move |name| {
        let [config, weights] =
            ["adapter_config.json", "adapter_model.safetensors"].map(|file| read(format!("{name}/{file}")));
        (format!("extras-{name}"), pack(Kind::Peft, &config, &weights))
    });
    let others = [
        ("extras-norms".to_string(), pack(Kind::File, &read("norms.safetensors".into()), &[])),
        ("extras-full".into(), pack(Kind::File, &read("full.safetensors".into()), &[])),
        ("peft-several".into(), pack(Kind::Peft, &text(&config), &two)),
    ];
    peft.chain(others)
}

fn configs() -> Vec<Value> {
    let decoder = |family: &str| {
        json!({ "model_type": family, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4, "num_hidden_layers": 2, "vocab_size": 16,
            "tie_word_embeddings": false })
    };
    let encoder = |family: &str| {
        json!({ "model_type": family, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
            "num_hidden_layers": 2, "vocab_size": 16 })
    };
    let decoders = ["llama", "mistral", "qwen2", "qwen3", "gemma"].map(decoder);
    let others = [
        encoder("bert"),
        encoder("roberta"),
        json!({ "model_type": "distilbert", "dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2 }),
        json!({ "model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": null, "vocab_size": 16 }),
    ];
    decoders.into_iter().chain(others).collect()
}

fn two(tensors: &[(String, [usize; 2])]) -> Vec<(String, Vec<usize>)> {
    tensors.iter().map(|(name, shape)| (name.clone(), shape.to_vec())).collect()
}

/// Adapters whose names are written in the ways that a model's own may be told from.
fn others() -> Vec<Adapter> {
    let names = [
        ["lora_unet_a_q", "lora_te1_a_q"],
        ["mine_q_weight", "mine_q"],
        ["model.layers.0.q", "model.visual.blocks.0.q"],
        ["q", "t.q"],
    ];
    let shape = KronShape::lora(LayerDims { d_out: 4, d_in: 5 }, 1).expect("a legal shape");
    let layer = |name: &str| Layer::new(name, Scaling::plain(1.0)?, Theta::random(shape, 1));
    let adapter = |names: [&str; 2]| Adapter::new(names.map(|name| layer(name).expect("a name")).into());
    names.map(|names| adapter(names).expect("two modules")).into()
}

/// A safetensors file of float32 tensors.
pub(crate) fn file(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    file_with(tensors, &[])
}

/// A safetensors file of float32 tensors, with these texts in its metadata.
fn file_with(tensors: &[(String, Vec<usize>)], metadata: &[(&str, String)]) -> Vec<u8> {
    let numbers = |len: usize| (0..len).flat_map(|i| (0.25 * i as f32 + 1.0).to_le_bytes()).collect();
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| numbers(shape.iter().product())).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("bytes that fit the shape"))
    });
    let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.clone()));
    let metadata = Some(metadata.collect()).filter(|texts: &HashMap<_, _>| !texts.is_empty());
    safetensors::serialize(views, metadata).expect("a file")
}

pub(crate) fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}
