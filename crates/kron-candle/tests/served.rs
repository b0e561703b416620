//! Texts with adapters of their own in one call of a decoder, against one model for each adapter.

#[path = "common/seeded.rs"]
mod seeded;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use kron_candle::models::{Body, Config, KvCache, Layers, Tokens};
use kron_candle::{
    Adapter, FilePool, IfExists, Inject, KronShape, Layer, LayerDims, PooledAdapter, ScaleRule, Scaling,
    Split, Theta, load,
};

/// Heads with norms and an output matrix of its own; the hidden state's width is that of the queries.
const CONFIG: &str = r#"{
    "model_type": "qwen3", "vocab_size": 83, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "max_position_embeddings": 12,
    "tie_word_embeddings": false, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6 }"#;

/// Any tensor, which follows from its name.
struct Seeded;

impl SimpleBackend for Seeded {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        seeded::tensor(name, &shape)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(Error::CannotFindTensor { path: name.into() })
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn model(inject: &Inject) -> Result<Box<dyn Body>> {
    let vb = VarBuilder::from_backend(Box::new(Seeded), DType::F32, Device::Cpu);
    Config::parse(CONFIG)?.build(&Layers::new(inject, vb))
}

/// Writes an adapter of some modules, each given with its sizes, and reads it through a pool.
fn adapter(
    pool: &FilePool,
    folder: &Path,
    name: &str,
    modules: &[(&str, [usize; 2])],
) -> Result<Arc<PooledAdapter>> {
    let layer = |&(module, [d_out, d_in]): &(&str, [usize; 2])| {
        let split = Split { a_out: 1, a_in: 4 };
        let shape = KronShape::kron(LayerDims { d_out, d_in }, split, name.len()).expect("a legal shape");
        let scaling = Scaling::new(40.0, 1, ScaleRule::AlphaOverR).expect("finite");
        Layer::new(module, scaling, Theta::random(shape, name.len() as u64)).expect("a legal name")
    };
    let path = folder.join(name);
    let adapter = Adapter::new(modules.iter().map(layer).collect()).map_err(Error::wrap)?;
    adapter.write(&path, IfExists::Refuse).map_err(Error::wrap)?;
    pool.get(&path).map_err(Error::wrap)
}

/// Adapters of different modules: some layers of a text have an adapter, and others have none.
fn adapters(pool: &FilePool, folder: &Path) -> Result<[Arc<PooledAdapter>; 3]> {
    let (q, down) =
        (("model.layers.0.self_attn.q_proj", [48, 48]), ("model.layers.1.mlp.down_proj", [48, 72]));
    let (v, head) = (("model.layers.1.self_attn.v_proj", [24, 48]), ("lm_head", [83, 48]));
    Ok([
        adapter(pool, folder, "a", &[q, down])?,
        adapter(pool, folder, "bb", &[v])?,
        adapter(pool, folder, "ccc", &[q, v, head])?,
    ])
}

/// Logits of the token after a text, by a model of its own.
fn alone(adapter: Option<&PooledAdapter>, text: &[u32]) -> Result<Vec<f32>> {
    let inject = match adapter {
        Some(adapter) => Inject::trained(load(adapter.path())?),
        None => Inject::nothing(),
    };
    let model = model(&inject)?;
    let hidden = model.hidden(&Tokens::new(&[text]), None)?.narrow(1, text.len() - 1, 1)?;
    model.logits(&hidden)?.expect("a decoder's").flatten_all()?.to_vec1()
}

#[test]
fn texts_have_the_logits_of_a_model_with_their_adapter() -> Result<()> {
    let (folder, pool) = (tempfile::tempdir()?, FilePool::new(1 << 20));
    let adapters = adapters(&pool, folder.path())?;
    let inject = Inject::serving();
    let shared = model(&inject)?;
    let table = [2, -1, 0, 1, 0, 2];
    let batch = inject.finish_serving()?.batch(&adapters, &table)?;
    let texts: [&[u32]; 6] =
        [&[5, 6, 7, 8, 9], &[5, 6, 7], &[5, 6, 7], &[1, 2, 3, 4, 82, 0, 11], &[40, 41], &[9, 9, 9, 9]];
    // Parts of other lengths in each call, after which each text has its own number of tokens.
    let parts = [[2, 1, 2, 4, 1, 1], [3, 2, 1, 3, 1, 3]];
    let mut caches: Vec<KvCache> = texts.iter().map(|_| KvCache::default()).collect();
    for part in parts {
        let starts: Vec<usize> = caches.iter().map(KvCache::len).collect();
        let new: Vec<Vec<u32>> = texts
            .iter()
            .zip(&starts)
            .zip(part)
            .map(|((text, &at), len)| text[at..at + len].to_vec())
            .collect();
        let logits = shared.next_logits(&new, &mut caches, &batch)?.to_vec2::<f32>()?;
        for (i, text) in texts.iter().enumerate() {
            let seen = &text[..starts[i] + part[i]];
            assert_eq!(caches[i].len(), seen.len());
            let adapter = usize::try_from(table[i]).ok().map(|i| &*adapters[i]);
            let (want, base) = (alone(adapter, seen)?, alone(None, seen)?);
            let distance =
                |to: &[f32]| logits[i].iter().zip(to).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            let size = want.iter().fold(0f32, |most, v| most.max(v.abs()));
            assert!(distance(&want) < 1e-5 * size, "text {i}: {} of {size}", distance(&want));
            assert!(adapter.is_none() || distance(&base) > 1e-3 * size, "text {i}: the adapter does nothing");
        }
    }
    Ok(())
}

#[test]
fn batches_that_do_not_fit_are_refused() -> Result<()> {
    let (folder, pool) = (tempfile::tempdir()?, FilePool::new(1 << 20));
    let adapters = adapters(&pool, folder.path())?;
    let inject = Inject::serving();
    let shared = model(&inject)?;
    let batch = inject.finish_serving()?.batch(&adapters, &[0, -1])?;
    let caches = |count: usize| std::iter::repeat_with(KvCache::default).take(count).collect::<Vec<_>>();
    let refused = |model: &dyn Body, new: &[Vec<u32>], count: usize, rule: &str| {
        let mut caches = caches(count);
        let error = model.next_logits(new, &mut caches, &batch).expect_err(rule).to_string();
        assert!(error.contains(rule), "{error}");
        assert!(caches.iter().all(KvCache::is_empty));
    };
    refused(&*shared, &[vec![1]], 2, "there are new tokens of 1 texts, 2 caches and adapters of 2 texts");
    refused(&*shared, &[vec![1], vec![2]], 1, "1 caches and adapters of 2 texts");
    refused(&*shared, &[vec![1], vec![]], 2, "text 1 has no new token");
    refused(&*shared, &[vec![1], vec![2; 13]], 2, "a text has 13 tokens, but the model has 12 positions");
    let plain = model(&Inject::nothing())?;
    refused(&*plain, &[vec![1], vec![2]], 2, "the model was not built by Inject::serving");
    let trained = model(&Inject::trained(load(adapters[0].path())?))?;
    refused(&*trained, &[vec![1], vec![2]], 2, "the model was not built by Inject::serving");
    Ok(())
}
