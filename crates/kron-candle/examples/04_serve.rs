//! Serve a thousand users in one batch, each with an adapter of its own: read from files through a pool with a limit
//! of memory, and computed together. The tokens are those of one adapter at a time.
//!
//!     cargo run -p kron-candle --example 04_serve

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use kron_candle::models::{Config, KvCache, Layers};
use kron_candle::{
    Adapter, FilePool, FilePoolStats, Inject, KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta,
    load,
};

/// Users, each with a file.
const USERS: usize = 1000;
/// Users of the first batch; those of the second are the last ones, so that some are in both.
const BATCH: usize = 800;
/// Tokens generated for each user.
const STEPS: usize = 3;
/// A token t is the pair (t / SIDE, t % SIDE).
const SIDE: usize = 8;
const VOCAB: usize = SIDE * SIDE;
/// Adapted modules.
const QUERY: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("kron-serve-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let stats = serve(&folder);
    std::fs::remove_dir_all(&folder)?;
    println!("{:?}", stats?);
    Ok(())
}

/// Serves two batches, and returns the counts of the pool.
pub fn serve(folder: &Path) -> Result<FilePoolStats> {
    // 1. A "pretrained" decoder of one block. Its base continues each token t with t + 1.
    let weights = weights()?;
    let model = |inject: &Inject| {
        let vb = VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
        config()?.build(&Layers::new(inject, vb))
    };

    // 2. A thousand files. The adapter of a user continues each token by the user's own rule.
    let files = (0..USERS).map(|user| write(folder, user)).collect::<Result<Vec<PathBuf>>>()?;

    // 3. One model for all users, and a pool that holds the factors of one batch and a half.
    let inject = Inject::serving();
    let shared = model(&inject)?;
    let modules = inject.finish_serving()?;
    let each = 4 * load(&files[0])?.params() as u64;
    let pool = FilePool::new(each * (BATCH as u64 + BATCH as u64 / 8));

    // 4. Two batches. Every eighth user has no adapter in them: its tokens are the base's.
    let mut generated = vec![None; USERS];
    for users in [0..BATCH, USERS - BATCH..USERS] {
        let adapters = users.clone().map(|user| pool.get(&files[user]));
        let adapters = adapters.collect::<kron_adapter::Result<Vec<_>>>().map_err(Error::wrap)?;
        let table: Vec<i32> =
            (0..).zip(users.clone()).map(|(i, user)| if has_adapter(user) { i } else { -1 }).collect();
        let batch = modules.batch(&adapters, &table)?;
        let mut texts: Vec<Vec<u32>> = users.clone().map(prompt).collect();
        let (mut new, mut caches) = (texts.clone(), Vec::new());
        caches.resize_with(BATCH, KvCache::default);
        for _ in 0..STEPS {
            let next = shared.next_logits(&new, &mut caches, &batch)?.argmax(1)?.to_vec1::<u32>()?;
            new = next.iter().map(|&token| vec![token]).collect();
            texts.iter_mut().zip(next).for_each(|(text, token)| text.push(token));
        }
        for (user, text) in users.zip(texts) {
            let first = generated[user].get_or_insert_with(|| text.clone());
            assert_eq!(*first, text, "user {user} in the second batch");
        }
    }

    // 5. The same users one at a time, each with its own model, and by the rules that were planted.
    for (user, text) in generated.iter().enumerate() {
        let inject = if has_adapter(user) { Inject::trained(load(&files[user])?) } else { Inject::nothing() };
        let alone = model(&inject)?;
        let (mut own, mut planted, mut cache) = (prompt(user), prompt(user), KvCache::default());
        for _ in 0..STEPS {
            let hidden = alone.continued(&own[cache.len()..], &mut cache)?;
            let logits = alone.logits(&hidden)?.ok_or_else(|| Error::msg("a decoder has logits"))?;
            own.push(logits.flatten_all()?.argmax(0)?.to_scalar::<u32>()?);
            planted.push(rule(user, planted[planted.len() - 1]));
        }
        assert_eq!(text.as_ref(), Some(&own), "user {user} in a batch and alone");
        assert_eq!(own, planted, "user {user}");
    }

    // 6. A pool that a batch does not fit into refuses, and names the file.
    let small = FilePool::new(10 * each);
    let few = files.iter().map(|path| small.get(path)).collect::<kron_adapter::Result<Vec<_>>>();
    let error = few.map(drop).expect_err("adapters in use stay");
    assert!(error.message().starts_with(&files[10].display().to_string()), "{error}");
    Ok(pool.stats())
}

fn has_adapter(user: usize) -> bool {
    user % 8 != 7
}

/// One to three tokens.
fn prompt(user: usize) -> Vec<u32> {
    (0..=user % 3).map(|i| ((user * 31 + i * 17) % VOCAB) as u32).collect()
}

/// The token that follows another by a user's adapter, or by the base.
fn rule(user: usize, token: u32) -> u32 {
    let [row, column] = [token as usize / SIDE, token as usize % SIDE];
    let next = match has_adapter(user) {
        true => SIDE * permutation(user, 1)[row] + permutation(user, 2)[column],
        false => (token as usize + 1) % VOCAB,
    };
    next as u32
}

/// A permutation of the numbers below [`SIDE`], which follows from its arguments.
fn permutation(user: usize, side: u64) -> Vec<usize> {
    let mut state = (user as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (side << 32);
    let mut all: Vec<usize> = (0..SIDE).collect();
    for i in (1..SIDE).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(i, (state >> 33) as usize % (i + 1));
    }
    all
}

/// Writes a user's adapter: a random LoRA of rank 2 on the queries, and the user's rule on the second projection of
/// the MLP, ΔW = s·A ⊗ (B·C) with a permutation in A and another in B·C.
fn write(folder: &Path, user: usize) -> Result<PathBuf> {
    let path = folder.join(format!("user-{user}.safetensors"));
    // `Adapter::write` would wait for the disk, a thousand times.
    std::fs::write(&path, adapter(user).and_then(|adapter| adapter.to_bytes()).map_err(Error::wrap)?)?;
    Ok(path)
}

fn adapter(user: usize) -> kron_adapter::Result<Adapter> {
    let dims = LayerDims { d_out: VOCAB, d_in: VOCAB };
    let matrix = |to: &dyn Fn(usize) -> usize| -> Vec<f32> {
        (0..VOCAB).map(|i| f32::from(i / SIDE == to(i % SIDE))).collect()
    };
    let (outer, inner) = (permutation(user, 1), permutation(user, 2));
    let shape = KronShape::kron(dims, Split { a_out: SIDE, a_in: SIDE }, SIDE)?;
    let [a, b, c] = [matrix(&|i| outer[i]), matrix(&|i| inner[i]), matrix(&|i| i)];
    let down = Theta::from_factors(shape, &a, &b, &c)?;
    let query = Theta::random(KronShape::lora(dims, 2)?, user as u64);
    // The MLP's inner state is 64 at the token, so the rule's token gets 8; the base's gets 2.
    Adapter::new(vec![
        Layer::new(QUERY, Scaling::new(0.2, 2, ScaleRule::AlphaOverR)?, query)?,
        Layer::new(DOWN, Scaling::new(1.0, SIDE, ScaleRule::AlphaOverR)?, down)?,
    ])
}

fn config() -> Result<Config> {
    Config::parse(&format!(
        r#"{{ "model_type": "llama", "vocab_size": {VOCAB}, "hidden_size": {VOCAB}, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": {VOCAB},
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true }}"#
    ))
}

/// Weights by name: a token's hidden state has a 1 at the token's place.
fn weights() -> Result<HashMap<String, Tensor>> {
    let matrix = |rows: usize, value: &dyn Fn(usize, usize) -> f32| {
        let values = (0..rows * VOCAB).map(|i| value(i / VOCAB, i % VOCAB));
        Tensor::from_iter(values, &Device::Cpu)?.reshape((rows, VOCAB))
    };
    let same = |row: usize, column: usize| f32::from(row == column);
    // Attention mixes a little of everything in.
    let mixed = |row: usize, column: usize| ((row * 7919 + column * 131) % 997) as f32 / 4000.0 - 0.125;
    let ones = || Tensor::ones(VOCAB, DType::F32, &Device::Cpu);
    let block = |name: &str| format!("model.layers.0.{name}.weight");
    Ok(HashMap::from([
        ("model.embed_tokens.weight".into(), matrix(VOCAB, &same)?),
        ("model.norm.weight".into(), ones()?),
        (block("input_layernorm"), ones()?),
        (block("post_attention_layernorm"), ones()?),
        (block("self_attn.q_proj"), matrix(VOCAB, &mixed)?),
        (block("self_attn.k_proj"), matrix(VOCAB / 2, &mixed)?),
        (block("self_attn.v_proj"), matrix(VOCAB / 2, &mixed)?),
        (block("self_attn.o_proj"), matrix(VOCAB, &|row, column| mixed(row, column) / 20.0)?),
        (block("mlp.gate_proj"), matrix(VOCAB, &same)?),
        (block("mlp.up_proj"), matrix(VOCAB, &same)?),
        // 64 · 1/32 = 2 for the token t + 1.
        (block("mlp.down_proj"), matrix(VOCAB, &|row, column| same(row, (column + 1) % VOCAB) / 32.0)?),
    ]))
}
