//! GGUF files byte by byte, and the value of every element of a block in float64.

use std::path::Path;

use half::{bf16, f16};
use kron_adapter::gguf::{BlockType, Gguf, HuggingFaceTensor, read_lora};
use kron_core::Dtype;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Dimensions, columns last.
    pub shape: Vec<u64>,
    /// Number of the type.
    pub id: u32,
    /// Blocks.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Makes a matrix of random blocks.
    pub fn random(name: &str, block_type: BlockType, rows: usize, blocks: usize, rng: &mut impl Rng) -> Self {
        let bytes = (0..rows * blocks).flat_map(|_| random_block(block_type, rng)).collect();
        let shape = vec![rows as u64, (blocks * block_type.values()) as u64];
        Self { name: name.into(), shape, id: block_type.id(), bytes }
    }
}

/// Returns a generator of reproducible values.
pub fn seeded(seed: u64) -> impl Rng {
    Pcg64Mcg::seed_from_u64(seed)
}

/// Encodes a text with its length.
pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Encodes a metadata entry: key, type, value.
pub fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// Encodes a file of version 3 with 32-byte alignment.
pub fn file(entries: &[Vec<u8>], tensors: &[Tensor]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.concat());
    let mut offset = 0;
    for tensor in tensors {
        bytes.extend(text(&tensor.name));
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(tensor.id.to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset = (offset + tensor.bytes.len()).next_multiple_of(32);
    }
    for tensor in tensors {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&tensor.bytes);
    }
    bytes
}

/// Encodes an array of texts.
pub fn texts(texts: &[&str]) -> Vec<u8> {
    let all = texts.iter().flat_map(|word| text(word));
    [&8u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat().into_iter().chain(all).collect()
}

/// Metadata of a LLaMA of one block, 32 wide, with two heads of 16 that share their keys.
pub fn llama_metadata() -> Vec<Vec<u8>> {
    let size = |key: &str, size: u32| entry(&format!("llama.{key}"), 4, &size.to_le_bytes());
    let types = [&5u32.to_le_bytes()[..], &4u64.to_le_bytes()].concat();
    let types =
        types.into_iter().chain([3i32, 1, 1, 1].into_iter().flat_map(i32::to_le_bytes)).collect::<Vec<_>>();
    vec![
        entry("general.architecture", 8, &text("llama")),
        size("block_count", 1),
        size("context_length", 64),
        size("embedding_length", 32),
        size("feed_forward_length", 64),
        size("attention.head_count", 2),
        size("attention.head_count_kv", 1),
        entry("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
        entry("llama.rope.freq_base", 6, &1e5f32.to_le_bytes()),
        entry("tokenizer.ggml.model", 8, &text("gpt2")),
        entry("tokenizer.ggml.pre", 8, &text("smollm")),
        entry("tokenizer.ggml.tokens", 9, &texts(&["<|end|>", "a", "b", "ab"])),
        entry("tokenizer.ggml.token_type", 9, &types),
        entry("tokenizer.ggml.merges", 9, &texts(&["a b"])),
        entry("tokenizer.ggml.eos_token_id", 4, &0u32.to_le_bytes()),
        entry("tokenizer.chat_template", 8, &text("{{ messages }}")),
    ]
}

/// Tensors of that LLaMA, of several kinds.
pub fn llama_tensors() -> Vec<Tensor> {
    let mut rng = Pcg64Mcg::seed_from_u64(11);
    let norm = |name: &str, rng: &mut Pcg64Mcg| {
        let norm = Tensor::random(name, BlockType::F32, 1, 32, rng);
        Tensor { shape: vec![32], ..norm }
    };
    let mut all = vec![
        Tensor::random("token_embd.weight", BlockType::Q8_0, 4, 1, &mut rng),
        norm("output_norm.weight", &mut rng),
        norm("blk.0.attn_norm.weight", &mut rng),
        norm("blk.0.ffn_norm.weight", &mut rng),
    ];
    for (name, kind, rows, blocks) in [
        ("attn_q", BlockType::Q4_1, 32, 1),
        ("attn_k", BlockType::Q4_0, 16, 1),
        ("attn_v", BlockType::Q5_0, 16, 1),
        ("attn_output", BlockType::F16, 32, 32),
        ("ffn_gate", BlockType::Q5_1, 64, 1),
        ("ffn_up", BlockType::Bf16, 64, 32),
        ("ffn_down", BlockType::Q8_0, 32, 2),
    ] {
        all.push(Tensor::random(&format!("blk.0.{name}.weight"), kind, rows, blocks, &mut rng));
    }
    all
}

/// Metadata and tensors of an adapter: one layer, whose scale is 4 / 2.
pub fn lora_parts() -> (Vec<Vec<u8>>, Vec<Tensor>) {
    let words = [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "llama")];
    let mut entries: Vec<_> = words.iter().map(|(key, value)| entry(key, 8, &text(value))).collect();
    entries.push(entry("adapter.lora.alpha", 6, &4f32.to_le_bytes()));
    entries.push(entry("llama.attention.key_length", 4, &16u32.to_le_bytes()));
    let mut rng = Pcg64Mcg::seed_from_u64(12);
    let factors = [("a", 2, 32), ("b", 32, 2)].map(|(half, rows, columns)| {
        Tensor::random(&format!("blk.0.attn_q.weight.lora_{half}"), BlockType::F32, rows, columns, &mut rng)
    });
    (entries, factors.into())
}

/// Reads all that a damaged file lets be read, as an adapter and as a model; returns true if it is one.
pub fn read_any(folder: &Path, bytes: &[u8]) -> bool {
    let path = folder.join("damaged.gguf");
    std::fs::write(&path, bytes).expect("written");
    if read_lora(&path).is_ok() {
        return true;
    }
    let Ok(mut gguf) = Gguf::open(&path) else { return false };
    let unchanged = &mut |_: &HuggingFaceTensor, _: usize, _: &mut [f32]| Ok(());
    if let Ok(tensors) = gguf.llama_tensors() {
        drop(gguf.write_gguf(&tensors, Dtype::F16, unchanged, &mut std::io::sink(), &|_| Ok(())));
    }
    let Ok(model) = gguf.hugging_face() else { return false };
    gguf.write_safetensors(&model.tensors, Dtype::F32, unchanged, &mut std::io::sink(), &|_| Ok(())).is_ok()
}

/// Places of the float16 scales in a block.
fn scales(block_type: BlockType) -> &'static [usize] {
    match block_type {
        BlockType::F32 | BlockType::F16 | BlockType::Bf16 => &[],
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
    }
}

/// Makes a block of random quants with finite scales.
pub fn random_block(block_type: BlockType, rng: &mut impl Rng) -> Vec<u8> {
    let value: f32 = rng.random_range(-2.0..2.0);
    match block_type {
        BlockType::F32 => return value.to_le_bytes().into(),
        BlockType::F16 => return f16::from_f32(value).to_le_bytes().into(),
        BlockType::Bf16 => return bf16::from_f32(value).to_le_bytes().into(),
        _ => {}
    }
    let mut block: Vec<u8> = (0..block_type.bytes()).map(|_| rng.random()).collect();
    for &at in scales(block_type) {
        block[at..at + 2].copy_from_slice(&f16::from_f32(rng.random_range(-2.0..2.0)).to_le_bytes());
    }
    block
}

/// Returns element i of a block, and the sum of the magnitudes of its terms.
pub fn element(block_type: BlockType, block: &[u8], i: usize) -> (f64, f64) {
    let f16_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let nibble = |at: usize| f64::from(block[at + i % 16] >> (4 * (i / 16)) & 15);
    let bit = |at: usize, i: usize| f64::from(block[at + i / 8] >> (i % 8) & 1);
    let (scale, q, min) = match block_type {
        BlockType::F32 => (1.0, f32::from_le_bytes(block.try_into().expect("four bytes")).into(), 0.0),
        BlockType::F16 => (1.0, f16_at(0), 0.0),
        BlockType::Bf16 => (1.0, bf16::from_le_bytes([block[0], block[1]]).to_f64(), 0.0),
        BlockType::Q4_0 => (f16_at(0), nibble(2) - 8.0, 0.0),
        BlockType::Q4_1 => (f16_at(0), nibble(4), -f16_at(2)),
        BlockType::Q5_0 => (f16_at(0), nibble(6) + 16.0 * bit(2, i) - 16.0, 0.0),
        BlockType::Q5_1 => (f16_at(0), nibble(8) + 16.0 * bit(4, i), -f16_at(2)),
        BlockType::Q8_0 => (f16_at(0), f64::from(block[2 + i] as i8), 0.0),
        BlockType::Q2K => {
            let scales = block[i / 16];
            let q = block[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            (f16_at(80) * f64::from(scales & 15), q.into(), f16_at(82) * f64::from(scales >> 4))
        }
        BlockType::Q3K => {
            let (s, low) = (i / 16, block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
            let high = block[i % 32] >> (i / 32) & 1;
            let nibble = block[96 + s % 8] >> (s / 8 * 4) & 15;
            let scale = i32::from(nibble | (block[104 + s % 4] >> (s / 4 * 2) & 3) << 4) - 32;
            (f16_at(108) * f64::from(scale), f64::from(low + 4 * high) - 4.0, 0.0)
        }
        BlockType::Q4K | BlockType::Q5K => {
            let (s, packed) = (i / 32, &block[4..16]);
            let (scale, min) = if s < 4 {
                (packed[s] & 63, packed[s + 4] & 63)
            } else {
                let (low, high) = (packed[s + 4], |i: usize| packed[i] >> 6);
                ((low & 15) + 16 * high(s - 4), (low >> 4) + 16 * high(s))
            };
            let five = block_type == BlockType::Q5K;
            let quants = if five { 48 } else { 16 };
            let low = block[quants + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
            let high = if five { block[16 + i % 32] >> s & 1 } else { 0 };
            (f16_at(0) * f64::from(scale), f64::from(low + 16 * high), f16_at(2) * f64::from(min))
        }
        BlockType::Q6K => {
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = block[64 * half + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
            let high = block[128 + 32 * half + l] >> (quarter * 2) & 3;
            let scale = f64::from(block[192 + i / 16] as i8);
            (f16_at(208) * scale, f64::from(low + 16 * high) - 32.0, 0.0)
        }
    };
    (scale * q - min, (scale * q).abs() + min.abs())
}
