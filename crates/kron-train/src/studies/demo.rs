//! `kron-train demo`: recovery of a planted update, without any file.
//!
//! A small encoder of random weights (the teacher) gets a planted ΔW = s·A ⊗ (B·C) in every linear layer. Adapters of
//! equal size are then trained on the unchanged encoder to imitate the teacher. The inputs are random, so the only
//! structure to find is that of the update.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use kron_adapter::Adapter;
use kron_adapter::algebra::Delta;
use kron_candle::{AdamW, Adapters, DropoutKey, Gradients, Group, Inject, Layer, ScaleRule, Scaling, Theta};
use kron_core::{KronShape, LayerDims, Split, philox};

use crate::data::Tokens;
use crate::error::Result;
use crate::model::{BertConfig, Body, Config, Weights, build};

/// Outer factor of the planted update.
const PLANTED_SPLIT: Split = Split { a_out: 4, a_in: 4 };
/// Rank of the planted update.
const PLANTED_RANK: usize = 2;
/// Highest learning rate, which decays linearly to zero.
const LEARNING_RATE: f64 = 3e-2;
/// Number of training steps.
const STEPS: u64 = 400;

/// Result of one method.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// `kron` or `lora`.
    pub method: String,
    /// Number of trained parameters.
    pub params: usize,
    /// Mean squared difference of the outputs before the first step and after the last.
    pub loss: (f64, f64),
    /// ‖ΔW − planted‖ / ‖planted‖ over all layers.
    pub distance: f64,
}

/// Trains Kron-LoRA of the planted shape, and LoRA of at least as many parameters.
///
/// # Errors
/// candle fails.
pub fn demo(seed: u64, mut report: impl FnMut(&str, u64, f64)) -> Result<Vec<Recovery>> {
    let config = BertConfig {
        vocab_size: 97,
        hidden_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        intermediate_size: 128,
        max_position_embeddings: 16,
        type_vocab_size: 1,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".into(),
        position_embedding_type: "absolute".into(),
    };
    let weights = random_weights(&config, seed)?;
    let kron = |_: &str, dims: LayerDims| {
        let shape = KronShape::kron(dims, PLANTED_SPLIT, PLANTED_RANK)?;
        Ok((shape, Scaling::new(1.0, 1, ScaleRule::AlphaOverR)?))
    };
    let (planted, teacher) = plant(&weights, kron, seed)?;
    let budget = planted.params();
    // The smallest rank with at least as many parameters as were planted.
    let lora_rank = (1..).find(|r| lora_params(&planted, *r) >= budget).unwrap_or(1);
    let lora = move |_: &str, dims: LayerDims| {
        Ok((KronShape::lora(dims, lora_rank)?, Scaling::new(1.0, 1, ScaleRule::AlphaOverR)?))
    };
    let mut results = Vec::new();
    for (method, inject) in [
        ("kron", Inject::new(&["layer*"], seed + 1, kron)?),
        ("lora", Inject::new(&["layer*"], seed + 1, lora)?),
    ] {
        let body = build(&weights, &inject)?;
        let adapters = inject.finish()?;
        let loss = imitate(&*body, &*teacher, &adapters, &config, |step, loss| report(method, step, loss))?;
        let distance = distance(&adapters.to_adapter()?, &planted)?;
        results.push(Recovery { method: method.into(), params: adapters.params(), loss, distance });
    }
    Ok(results)
}

fn lora_params(planted: &Adapter, rank: usize) -> usize {
    planted.layers().iter().map(|l| rank * (l.shape().d_out() + l.shape().d_in())).sum()
}

/// Draws values uniform in ±edge; every stream gives other values.
fn uniform(len: usize, edge: f32, seed: u64, stream: u32) -> Vec<f32> {
    let value = |i: usize| {
        let bits = philox([i as u32, stream, 0x6465_6d6f, 0], [seed as u32, (seed >> 32) as u32])[0];
        edge * ((bits >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    (0..len).map(value).collect()
}

/// Makes random tensors of an encoder, with the scale of an untrained one's.
fn random_weights(config: &BertConfig, seed: u64) -> Result<Weights> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let mut tensors = HashMap::new();
    let mut stream = 0;
    let mut add = |name: String, rows: usize, cols: usize| -> Result<()> {
        stream += 1;
        let edge = (3.0 / cols as f32).sqrt();
        let values = uniform(rows * cols, edge, seed, stream);
        tensors.insert(format!("{name}.weight"), Tensor::from_vec(values, (rows, cols), &Device::Cpu)?);
        tensors.insert(
            format!("{name}.bias"),
            Tensor::from_vec(uniform(rows, 0.1, seed, stream), rows, &Device::Cpu)?,
        );
        Ok(())
    };
    for (name, rows) in [
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ] {
        add(format!("embeddings.{name}_embeddings"), rows, hidden)?;
    }
    for i in 0..config.num_hidden_layers {
        let at = format!("encoder.layer.{i}");
        for name in ["self.query", "self.key", "self.value", "output.dense"] {
            add(format!("{at}.attention.{name}"), hidden, hidden)?;
        }
        add(format!("{at}.intermediate.dense"), wide, hidden)?;
        add(format!("{at}.output.dense"), hidden, wide)?;
    }
    let blocks = (0..config.num_hidden_layers)
        .flat_map(|i| ["attention.output", "output"].map(|n| format!("encoder.layer.{i}.{n}")));
    for at in std::iter::once("embeddings".to_owned()).chain(blocks) {
        let ones = Tensor::ones(hidden, candle_core::DType::F32, &Device::Cpu)?;
        tensors.insert(format!("{at}.LayerNorm.bias"), ones.zeros_like()?);
        tensors.insert(format!("{at}.LayerNorm.weight"), ones);
    }
    Ok(Weights::new(Config::Bert(config.clone()), tensors))
}

/// Makes a random adapter on every linear layer, and the model with it.
fn plant(
    weights: &Weights,
    rule: impl Fn(&str, LayerDims) -> kron_adapter::Result<(KronShape, Scaling)>,
    seed: u64,
) -> Result<(Adapter, Box<dyn Body>)> {
    let probe = Inject::new(&["layer*"], seed, rule)?;
    build(weights, &probe)?;
    let layers = probe.finish()?.to_adapter()?;
    let random = |(layer, seed): (&Layer, u64)| {
        Layer::new(layer.module(), layer.scaling(), Theta::random(*layer.shape(), seed))
    };
    let layers = layers.layers().iter().zip(seed + 100..).map(random).collect::<kron_adapter::Result<_>>()?;
    let planted = Adapter::new(layers)?;
    let body = build(weights, &Inject::trained(planted.clone()))?;
    Ok((planted, body))
}

/// Trains a body's adapters towards the teacher's hidden states; returns the loss of a fixed batch before the first
/// step and after the last.
fn imitate(
    body: &dyn Body,
    teacher: &dyn Body,
    adapters: &Adapters,
    config: &BertConfig,
    mut report: impl FnMut(u64, f64),
) -> Result<(f64, f64)> {
    let mut optimizer =
        AdamW::new(adapters.vars().into_iter().map(Group::from).collect(), Default::default())?;
    let loss = |step: u64| -> Result<Tensor> {
        let tokens = random_tokens(config, step);
        let want = teacher.hidden(&tokens, None)?.detach();
        // A key keeps the autograd graph; the adapters have no dropout.
        let key = DropoutKey { seed: 0, offset: step };
        Ok(candle_nn::loss::mse(&body.hidden(&tokens, Some(key))?, &want)?)
    };
    let scalar = |loss: Tensor| -> Result<f64> { Ok(f64::from(loss.to_scalar::<f32>()?)) };
    let before = scalar(loss(u64::MAX)?)?;
    for step in 0..STEPS {
        let loss = loss(step)?;
        let mut gradients = Gradients::new(&optimizer.vars());
        gradients.add(&loss.backward()?, 1.0)?;
        optimizer.step(&gradients, LEARNING_RATE * (1.0 - step as f64 / STEPS as f64))?;
        report(step + 1, scalar(loss)?);
    }
    Ok((before, scalar(loss(u64::MAX)?)?))
}

/// Draws the batch of a step: 16 texts of 12 tokens.
fn random_tokens(config: &BertConfig, step: u64) -> Tokens {
    let rows: Vec<Vec<u32>> = (0..16)
        .map(|row| {
            let token = |i: u32| philox([i, row, 0x746f_6b65, 0], [step as u32, (step >> 32) as u32])[0];
            (0..12).map(|i| token(i) % config.vocab_size as u32).collect()
        })
        .collect();
    Tokens::new(&rows)
}

/// Returns ‖ΔW − planted‖ / ‖planted‖ over all layers, from the factors.
fn distance(found: &Adapter, planted: &Adapter) -> Result<f64> {
    let (mut apart, mut size) = (0.0, 0.0);
    for (found, planted) in found.layers().iter().zip(planted.layers()) {
        let (found, planted) = (Delta::new(found), Delta::new(planted));
        let far = planted.relative_distance(&found)? * planted.norm();
        apart += far * far;
        size += planted.norm() * planted.norm();
    }
    Ok((apart / size).sqrt())
}
