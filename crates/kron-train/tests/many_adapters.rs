//! Texts with adapters of their own in one batch of a quantised model, against one adapter at a time.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use kron_candle::models::{Body, KvCache};
use kron_candle::{FilePool, IfExists, Inject, Method, load};
use kron_train::model::{Files, Weights, build};

/// Writes an adapter on the queries of all blocks and the last products of all MLPs.
fn write(weights: &Weights, folder: &Path, user: u64) -> PathBuf {
    let inject = Inject::of_method(&["q_proj", "down_proj"], user, Method::Lora { rank: 2 }, 8.0);
    let inject = inject.expect("patterns");
    build(weights, &inject).expect("a model");
    let adapters = inject.finish().expect("every pattern");
    for (i, theta) in (0..).zip(adapters.vars()) {
        // The numbers of a generator whose bits any platform repeats.
        let mut state = (user << 32 | i) * 2 + 1;
        let values = (0..theta.elem_count()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 0.15
        });
        theta.set(&Tensor::from_iter(values, &Device::Cpu).expect("values")).expect("θ");
    }
    let path = folder.join(format!("user-{user}.safetensors"));
    adapters.save(&path, IfExists::Refuse).expect("written");
    path
}

fn next(logits: &Tensor) -> Vec<u32> {
    logits.argmax(1).and_then(|next| next.to_vec1()).expect("a row for each text")
}

/// Generates `steps` tokens for prompts of several users and of one without an adapter, together and one by one;
/// returns them.
fn serve(model: &Path, prompts: &[Vec<u32>], steps: usize) -> Vec<Vec<u32>> {
    let weights = Files::find(model).and_then(|files| Weights::read(&files)).expect("a model");
    let folder = tempfile::tempdir().expect("a folder");
    let users = prompts.len() - 1;
    let files: Vec<PathBuf> = (0..users as u64).map(|user| write(&weights, folder.path(), user)).collect();

    let inject = Inject::serving();
    let shared = build(&weights, &inject).expect("a model");
    let pool = FilePool::new(1 << 30);
    let adapters: Vec<_> = files.iter().map(|path| pool.get(path).expect("read")).collect();
    let table: Vec<i32> = (0..users as i32).chain([-1]).collect();
    let batch =
        inject.finish_serving().and_then(|modules| modules.batch(&adapters, &table)).expect("a batch");
    let mut caches: Vec<KvCache> = prompts.iter().map(|_| KvCache::default()).collect();
    let (mut new, mut texts) = (prompts.to_vec(), prompts.to_vec());
    for _ in 0..steps {
        let tokens = next(&shared.next_logits(&new, &mut caches, &batch).expect("logits"));
        new = tokens.iter().map(|&token| vec![token]).collect();
        texts.iter_mut().zip(tokens).for_each(|(text, token)| text.push(token));
    }

    for (user, (prompt, text)) in prompts.iter().zip(&texts).enumerate() {
        let inject = match files.get(user) {
            Some(path) => Inject::trained(load(path).expect("an adapter")),
            None => Inject::nothing(),
        };
        let alone: Box<dyn Body> = build(&weights, &inject).expect("a model");
        let (mut own, mut cache) = (prompt.clone(), KvCache::default());
        for _ in 0..steps {
            let hidden = alone.continued(&own[cache.len()..], &mut cache).expect("a state");
            let logits = alone.logits(&hidden).expect("logits").expect("of a decoder");
            own.extend(next(&logits.squeeze(0).expect("a row")));
        }
        assert_eq!(*text, own, "user {user}");
    }
    texts
}

/// The file of the model is named by the environment variable `KRON_SMOLLM2`, as scripts/check-smollm2.sh sets it.
#[test]
fn smollm2_serves_a_batch() {
    let Some(model) = std::env::var_os("KRON_SMOLLM2") else {
        return eprintln!("skipped: KRON_SMOLLM2 names no GGUF, scripts/fetch-smollm2.sh fetches it");
    };
    // Two prompts of the model's own words, each for three users.
    let prompts: Vec<Vec<u32>> =
        (0..6).map(|i| if i % 2 == 0 { vec![504, 3575, 282, 260] } else { vec![504, 2683] }).collect();
    let texts = serve(Path::new(&model), &prompts, 4);
    assert!(texts[0] != texts[2] || texts[1] != texts[3], "the adapters change no text: {texts:?}");
}
