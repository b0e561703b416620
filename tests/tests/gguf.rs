//! GGUF files: every value by its definition, and every damage refused.

use std::path::Path;

use kron_adapter::gguf::{Array, BlockType, Blocks, Gguf, Value};
use kron_adapter::{Kind, Tensors};
use kron_core::Dtype;
use kron_tests::gguf::{Tensor, element, entry, file, llama_metadata, llama_tensors, text, texts};
use kron_tests::mutate::mutate;
use kron_tests::place::Place;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

fn refused(place: &Place, bytes: &[u8]) -> String {
    let error = Gguf::open(&place.write("model.gguf", bytes)).expect_err("damaged");
    assert_eq!(error.kind(), Kind::Data);
    assert_eq!(error.message().lines().count(), 1, "{error}");
    error.to_string()
}

/// One matrix of each kind.
fn tensors(rng: &mut Pcg64Mcg) -> Vec<Tensor> {
    let all = BlockType::ALL.into_iter();
    all.map(|kind| Tensor::random(kind.name(), kind, 5, if kind.values() == 1 { 7 } else { 3 }, rng))
        .collect()
}

fn metadata() -> Vec<Vec<u8>> {
    let words = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text("a"), &text("é")].concat();
    let types = [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &(-1i32).to_le_bytes(), &3i32.to_le_bytes()];
    vec![
        entry("general.architecture", 8, &text("llama")),
        entry("llama.block_count", 4, &30u32.to_le_bytes()),
        entry("llama.rope.freq_base", 6, &1e5f32.to_le_bytes()),
        entry("tokenizer.ggml.tokens", 9, &words),
        entry("tokenizer.ggml.token_type", 9, &types.concat()),
        entry("tokenizer.ggml.add_bos_token", 7, &[0]),
    ]
}

#[test]
fn every_value_is_the_formula_s() {
    let (place, mut rng) = (Place::new(), Pcg64Mcg::seed_from_u64(1));
    let tensors = tensors(&mut rng);
    let mut gguf = Gguf::open(&place.write("model.gguf", &file(&metadata(), &tensors))).unwrap();
    for (tensor, kind) in tensors.iter().zip(BlockType::ALL) {
        let blocks = gguf.blocks(&tensor.name).unwrap();
        assert_eq!((blocks.block_type(), blocks.bytes()), (kind, &tensor.bytes[..]));
        let (rows, columns) = (blocks.rows(), blocks.columns());
        assert_eq!([rows as u64, columns as u64], tensor.shape[..]);
        let mut all = vec![f32::NAN; rows * columns];
        blocks.dequantise(0..rows, &mut all).unwrap();
        for (i, got) in all.iter().enumerate() {
            let block = &tensor.bytes[i / kind.values() * kind.bytes()..][..kind.bytes()];
            let (want, terms) = element(kind, block, i % kind.values());
            // Scale, product and difference are rounded, each to half a unit of 2^-23.
            let bound = 2.0 * f64::from(f32::EPSILON) * terms;
            assert!((f64::from(*got) - want).abs() <= bound, "{} {i}: {got}, not {want}", kind.name());
        }
        // Some rows are those rows, and permuted rows keep their blocks.
        let mut part = vec![0.0; 2 * columns];
        blocks.dequantise(2..4, &mut part).unwrap();
        assert_eq!(part, all[2 * columns..4 * columns]);
        let turned = blocks.with_rows(|row| rows - 1 - row).unwrap();
        turned.dequantise(0..1, &mut part[..columns]).unwrap();
        assert_eq!(part[..columns], all[(rows - 1) * columns..]);
        assert!(blocks.dequantise(4..6, &mut part).is_err() && blocks.dequantise(0..1, &mut part).is_err());
        assert!(blocks.with_rows(|_| rows).is_err());
    }
    assert!(gguf.blocks("other").is_err());
}

#[test]
fn metadata_has_its_types() {
    let place = Place::new();
    let gguf = Gguf::open(&place.write("model.gguf", &file(&metadata(), &[]))).unwrap();
    assert_eq!(gguf.value("general.architecture").unwrap().as_str(), Some("llama"));
    assert_eq!(gguf.value("llama.block_count").unwrap().as_usize(), Some(30));
    assert_eq!(gguf.value("llama.rope.freq_base").unwrap().as_f64(), Some(1e5));
    let words = gguf.value("tokenizer.ggml.tokens").unwrap().as_texts();
    assert_eq!(words, Some(&["a".to_string(), "é".to_string()][..]));
    assert_eq!(gguf.metadata()["tokenizer.ggml.token_type"], Value::Array(Array::Signed(vec![-1, 3])));
    assert_eq!(gguf.metadata()["tokenizer.ggml.add_bos_token"], Value::Bool(false));
    assert!(gguf.value("general.name").unwrap_err().message().ends_with("has no metadata general.name"));
}

#[test]
fn damaged_headers_are_refused_with_their_reason() {
    let (place, mut rng) = (Place::new(), Pcg64Mcg::seed_from_u64(2));
    let one =
        |shape: &[u64], id: u32| Tensor { name: "w".into(), shape: shape.into(), id, bytes: vec![0; 64] };
    let with = |entry: Vec<u8>| file(&[entry], &[]);
    let huge = u64::MAX.to_le_bytes();
    let plain = file(&metadata(), &tensors(&mut rng));
    let edited = |at: usize, bytes: &[u8]| {
        let mut file = plain.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let nested =
        [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &4u32.to_le_bytes(), &0u64.to_le_bytes()].concat();
    let bytes =
        |count: usize| [&0u32.to_le_bytes()[..], &(count as u64).to_le_bytes(), &vec![1; count]].concat();
    for (bytes, says) in [
        (Vec::new(), "cut short"),
        (b"GGML\x03\0\0\0".to_vec(), "not a GGUF file"),
        (edited(4, &[1]), "version 1"),
        (edited(4, &[0, 0, 0, 3]), "little-endian"),
        (edited(8, &huge), "tensors follow"),
        (edited(16, &huge), "metadata entries follow"),
        (edited(24, &huge), "bytes of a text follow"),
        (plain[..plain.len() - 1].to_vec(), "cut short"),
        (plain[..200].to_vec(), "cut short"),
        (file(&[entry("a", 4, &[0; 4]), entry("a", 4, &[0; 4])], &[]), "\"a\" twice"),
        (with(entry("a", 13, &[0; 8])), "type 13"),
        (with(entry("a", 7, &[2])), "truth value 2"),
        (with(entry("a", 9, &nested)), "array of arrays"),
        (with(entry("a", 9, &[&4u32.to_le_bytes()[..], &huge].concat())), "values follow"),
        (
            file(&[entry("a", 9, &bytes(3 << 20)), entry("b", 9, &bytes((1 << 20) + 1))], &[]),
            "4194304 values together",
        ),
        (with(entry("a", 9, &[&77u32.to_le_bytes()[..], &[0; 8]].concat())), "type 77"),
        (with(entry("a", 8, &[&1u64.to_le_bytes()[..], &[255]].concat())), "not UTF-8"),
        (with(entry("general.alignment", 4, &0u32.to_le_bytes())), "general.alignment"),
        (with(entry("general.alignment", 4, &24u32.to_le_bytes())), "general.alignment"),
        (with(entry("general.alignment", 10, &(1u64 << 40).to_le_bytes())), "general.alignment"),
        (file(&[], &[one(&[], 0)]), "0 dimensions"),
        (file(&[], &[one(&[1; 5], 0)]), "5 dimensions"),
        (file(&[], &[one(&[4, 0], 0)]), "dimension of 0"),
        (file(&[], &[one(&[0, 1 << 40], 0)]), "dimension of 0"),
        (file(&[], &[one(&[1 << 32, 1 << 32], 0)]), "address space"),
        (file(&[], &[one(&[1, u64::MAX], 0)]), "address space"),
        (file(&[], &[one(&[1, 16], 2)]), "not a multiple of 32, the length of a Q4_0 block"),
        (file(&[], &[one(&[4, 4], 4)]), "type 4"),
        (file(&[], &[one(&[4, 4], 99)]), "type 99"),
        (file(&[], &[one(&[4, 4], 0), one(&[4, 4], 0)]), "\"w\" twice"),
        (file(&[], &[one(&[1000, 1000], 0)]), "cut short"),
    ] {
        let error = refused(&place, &bytes);
        assert!(error.contains(says), "{says:?} is not in {error}");
    }
    // The second of two tensors begins within the first.
    let mut both = [one(&[4, 4], 0), one(&[4, 4], 0)];
    both[1].name = "v".into();
    let bytes = file(&[], &both);
    let at = bytes
        .windows(9)
        .rposition(|w| w == [&0u32.to_le_bytes()[..], &64u64.to_le_bytes()[..5]].concat())
        .unwrap();
    for (offset, says) in [(32u64, "overlap"), (33, "not a multiple of 32"), (u64::MAX - 31, "cut short")] {
        let mut bytes = bytes.clone();
        bytes[at + 4..at + 12].copy_from_slice(&offset.to_le_bytes());
        assert!(refused(&place, &bytes).contains(says));
    }
}

/// Every single byte set to several values, and random damage: a file is read or refused.
#[test]
fn no_damage_makes_it_panic() {
    let (place, mut rng) = (Place::new(), Pcg64Mcg::seed_from_u64(3));
    let plain = file(&metadata(), &tensors(&mut rng));
    let header = plain.len() - 3000;
    let (mut read, mut refused) = (0, 0);
    let mut attempt = |bytes: &[u8]| match Gguf::open(&place.write("model.gguf", bytes)) {
        Ok(mut gguf) => {
            for name in gguf.tensors().keys().cloned().collect::<Vec<_>>() {
                let blocks = gguf.blocks(&name).unwrap();
                blocks.dequantise(0..1, &mut vec![0.0; blocks.columns()]).unwrap();
            }
            read += 1;
        }
        Err(_) => refused += 1,
    };
    for at in 0..header.min(1200) {
        for value in [0, 1, 127, 255] {
            let mut bytes = plain.clone();
            bytes[at] = value;
            attempt(&bytes);
        }
    }
    for _ in 0..3000 {
        attempt(&mutate(&plain, &plain, &mut rng));
        attempt(&plain[..rng.random_range(0..plain.len())]);
    }
    assert!(read > 500 && refused > 3000, "{read} read, {refused} refused");
}

#[test]
fn blocks_of_other_sizes_are_refused() {
    assert!(Blocks::new(BlockType::Q4_0, 1, 33, vec![0; 18]).is_err());
    assert!(Blocks::new(BlockType::Q4_0, 2, 32, vec![0; 18]).is_err());
    assert!(Blocks::new(BlockType::F32, usize::MAX, 2, Vec::new()).is_err());
    assert_eq!(Blocks::new(BlockType::Q4_0, 2, 64, vec![0; 72]).unwrap().rows(), 2);
}

/// The committed file, which the program's tests read, is the one of the builder.
#[test]
fn the_committed_model_is_the_builder_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny_llama.gguf");
    let bytes = file(&llama_metadata(), &llama_tensors());
    if std::env::var_os("KRON_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "run with KRON_WRITE_GOLDEN=1 to write it anew");
}

/// Names, shapes and rows are Hugging Face's; the values are those of the blocks.
#[test]
fn a_llama_has_hugging_face_s_names_and_rows() {
    let (place, tensors) = (Place::new(), llama_tensors());
    let mut gguf = Gguf::open(&place.write("model.gguf", &file(&llama_metadata(), &tensors))).unwrap();
    let model = gguf.hugging_face().unwrap();
    let mut weights = Vec::new();
    gguf.write_safetensors(&model.tensors, Dtype::F32, &mut |_, _, _| Ok(()), &mut weights, &|_| Ok(()))
        .unwrap();
    let weights = Tensors::from_bytes("weights", weights).unwrap();
    assert_eq!(weights.metadata("format"), Some("pt"));
    let names = [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm"),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm"),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj"),
        ("blk.0.attn_k", "model.layers.0.self_attn.k_proj"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj"),
        ("blk.0.ffn_gate", "model.layers.0.mlp.gate_proj"),
        ("blk.0.ffn_up", "model.layers.0.mlp.up_proj"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
    ];
    assert_eq!(weights.names().len(), names.len());
    for (source, name) in names {
        let tensor = tensors.iter().find(|tensor| tensor.name == format!("{source}.weight")).unwrap();
        let name = format!("{name}.weight");
        let shape: Vec<u64> = weights.info(&name).unwrap().shape.iter().map(|dim| *dim as u64).collect();
        assert_eq!(shape, tensor.shape, "{name}");
        let blocks = gguf.blocks(&tensor.name).unwrap();
        let (rows, columns) = (blocks.rows(), blocks.columns());
        let mut values = vec![0.0; rows * columns];
        blocks.dequantise(0..rows, &mut values).unwrap();
        let got: Vec<f32> = kron_adapter::elements::decode(weights.data(&name).unwrap()).collect();
        let permuted = source.ends_with("attn_q") || source.ends_with("attn_k");
        for row in 0..rows {
            // B.reshape(heads, 2, 8, columns).swapaxes(1, 2) is what made the GGUF's rows.
            let (half, pair) = (row % 16 / 8, row % 8);
            let from = if permuted { row / 16 * 16 + 2 * pair + half } else { row };
            let [got, want] =
                [(&got, row), (&values, from)].map(|(all, row)| &all[row * columns..][..columns]);
            assert_eq!(got, want, "{name} {row}");
        }
    }
    let config = &model.config;
    for (key, value) in [
        ("model_type", "llama".into()),
        ("hidden_size", 32.into()),
        ("head_dim", 16.into()),
        ("num_key_value_heads", 1.into()),
        ("vocab_size", 4.into()),
        ("rms_norm_eps", 1e-5.into()),
        ("rope_theta", 1e5.into()),
        ("tie_word_embeddings", true.into()),
        ("eos_token_id", 0.into()),
    ] as [(&str, serde_json::Value); 9]
    {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(model.tokenizer["added_tokens"].as_array().map(Vec::len), Some(1));
    assert_eq!(model.tokenizer["model"]["merges"], serde_json::json!([["a", "b"]]));
    assert_eq!(model.tokenizer_config["chat_template"], "{{ messages }}");
    assert_eq!(model.tokenizer_config["eos_token"], "<|end|>");
}

#[test]
fn models_that_are_no_llama_are_refused_with_their_reason() {
    let place = Place::new();
    let refused = |metadata: Vec<Vec<u8>>, tensors: &[Tensor], says: &str| {
        let gguf = Gguf::open(&place.write("model.gguf", &file(&metadata, tensors))).unwrap();
        let error = gguf.hugging_face().expect_err(says).to_string();
        assert!(error.contains(says), "{says:?} is not in {error}");
    };
    let plain = llama_tensors();
    let with = |key: &str, kind: u32, value: &[u8]| {
        let mut all = llama_metadata();
        all.retain(|entry| entry[8..8 + key.len().min(entry.len() - 8)] != *key.as_bytes());
        all.push(entry(key, kind, value));
        all
    };
    let number = |n: u32| n.to_le_bytes();
    refused(with("general.architecture", 8, &text("gemma")), &plain, "architecture gemma");
    refused(with("llama.rope.scaling.type", 8, &text("yarn")), &plain, "llama.rope.scaling.type");
    refused(with("llama.block_count", 4, &number(0)), &plain, "llama.block_count");
    refused(with("llama.block_count", 8, &text("one")), &plain, "llama.block_count");
    refused(with("llama.block_count", 4, &number(2)), &plain, "has 11 tensors");
    refused(with("llama.embedding_length", 4, &number(u32::MAX)), &plain, "llama.embedding_length");
    refused(with("llama.attention.head_count", 4, &number(3)), &plain, "shape");
    refused(with("llama.attention.head_count_kv", 4, &number(5)), &plain, "5 key heads");
    refused(with("llama.rope.dimension_count", 4, &number(8)), &plain, "8 of them rotated");
    refused(with("llama.rope.freq_base", 6, &f32::NAN.to_le_bytes()), &plain, "llama.rope.freq_base");
    refused(with("tokenizer.ggml.pre", 8, &text("llama-bpe")), &plain, "llama-bpe");
    refused(with("tokenizer.ggml.tokens", 9, &texts(&["a", "a", "b", "ab"])), &plain, "\"a\" twice");
    refused(with("tokenizer.ggml.tokens", 9, &texts(&["a"])), &plain, "shape");
    refused(with("tokenizer.ggml.merges", 9, &texts(&["ab"])), &plain, "not a pair");
    refused(
        with("tokenizer.ggml.eos_token_id", 4, &number(4)),
        &plain,
        "eos_token_id is not the id of a token",
    );
    let renamed = |to: &str| {
        let mut tensors = plain.clone();
        tensors[4].name = to.into();
        tensors
    };
    for name in [
        "blk.0.attn_qkv.weight",
        "blk.1.attn_q.weight",
        "blk.00.attn_q.weight",
        "rope_freqs.weight",
        "blk.0.attn_q.bias",
    ] {
        refused(llama_metadata(), &renamed(name), name);
    }
    refused(llama_metadata(), &plain[..10], "has 10 tensors");
    // A value beyond the type's range.
    let mut tensors = plain.clone();
    tensors[1].bytes[..4].copy_from_slice(&1e9f32.to_le_bytes());
    let mut gguf = Gguf::open(&place.write("model.gguf", &file(&llama_metadata(), &tensors))).unwrap();
    let model = gguf.hugging_face().unwrap();
    let mut written = Vec::new();
    let error = gguf
        .write_safetensors(&model.tensors, Dtype::F16, &mut |_, _, _| Ok(()), &mut written, &|_| Ok(()))
        .unwrap_err();
    assert!(
        error.message().contains("model.norm.weight: row 0 holds 1000000000, which is not finite in f16"),
        "{error}"
    );
}
