//! Transformer block of a decoder, in candle's graph.

use std::ops::Range;

use crate::served::BatchRows;
use crate::{DropoutKey, KronLinear};
use candle_core::{Result, Tensor};

use super::decoder_config::DecoderConfig;
use super::group_trace::forward_each;
use super::kv_cache::BlockCache;
use super::layers::Layers;
use super::ops::{AttentionMask, Heads, add, attention, head_norm, head_norm_backward, rms_norm, swiglu};
use super::rope::Rotation;

/// Transformer block.
#[derive(Debug)]
pub(super) struct Block {
    input_norm: Tensor,
    q: KronLinear,
    k: KronLinear,
    v: KronLinear,
    /// Weights of the norms of each head of q and k.
    head_norms: Option<[Tensor; 2]>,
    o: KronLinear,
    norm: Tensor,
    gate: KronLinear,
    up: KronLinear,
    down: KronLinear,
    heads: Heads,
    eps: f32,
}

/// Inputs of a block beside x.
#[derive(Clone)]
pub(super) struct Pass {
    pub mask: AttentionMask,
    pub rotation: Rotation,
    pub key: Option<DropoutKey>,
}

/// New tokens of one of several texts.
pub(super) struct ServedText {
    /// Places among the tokens of all texts.
    pub places: Range<usize>,
    pub mask: AttentionMask,
    pub rotation: Rotation,
}

impl Block {
    pub fn new(config: &DecoderConfig, layers: &Layers) -> Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (all, kv) = (config.num_attention_heads * config.head(), config.kv_heads() * config.head());
        let (attn, mlp) = (layers.at("self_attn"), layers.at("mlp"));
        let (qkv_bias, o_bias) = config.attention_biases();
        let projection = |d_out, name| attn.linear(hidden, d_out, qkv_bias, name);
        let mlp = |d_in, d_out, name| mlp.linear(d_in, d_out, config.mlp_bias, name);
        let head_norm = |name| attn.vector(config.head(), name);
        Ok(Self {
            input_norm: layers.vector(hidden, "input_layernorm.weight")?,
            q: projection(all, "q_proj")?,
            k: projection(kv, "k_proj")?,
            v: projection(kv, "v_proj")?,
            head_norms: match config.norms_heads() {
                true => Some([head_norm("q_norm.weight")?, head_norm("k_norm.weight")?]),
                false => None,
            },
            o: attn.linear(all, hidden, o_bias, "o_proj")?,
            norm: layers.vector(hidden, "post_attention_layernorm.weight")?,
            gate: mlp(hidden, wide, "gate_proj")?,
            up: mlp(hidden, wide, "up_proj")?,
            down: mlp(wide, hidden, "down_proj")?,
            heads: Heads {
                queries: config.num_attention_heads,
                keys: config.kv_heads(),
                width: config.head(),
            },
            eps: config.rms_norm_eps as f32,
        })
    }

    /// Returns q, k, v, o, gate, up and down.
    pub const fn layers(&self) -> [&KronLinear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// Returns the weights of the norms before q, k, v and before gate, up.
    pub const fn norms(&self) -> [&Tensor; 2] {
        [&self.input_norm, &self.norm]
    }

    /// Returns true if a weight of a norm is trained.
    pub fn trains_norms(&self) -> bool {
        self.norms().into_iter().chain(self.head_norms.iter().flatten()).any(Tensor::track_op)
    }

    /// Normalises each head of q and k, where the model does.
    ///
    /// # Errors
    /// candle fails.
    pub fn norm_heads(&self, [q, k]: [Tensor; 2]) -> Result<[Tensor; 2]> {
        match &self.head_norms {
            Some([of_q, of_k]) => Ok([head_norm(&q, of_q, self.eps)?, head_norm(&k, of_k, self.eps)?]),
            None => Ok([q, k]),
        }
    }

    /// Returns the gradients of q and k in [`Block::norm_heads`], for float32 tensors on the CPU.
    ///
    /// # Errors
    /// candle fails.
    pub fn norm_heads_backward(&self, [q, k]: [&Tensor; 2], [dq, dk]: [Tensor; 2]) -> Result<[Tensor; 2]> {
        match &self.head_norms {
            Some([of_q, of_k]) => {
                Ok([head_norm_backward(q, of_q, self.eps, &dq)?, head_norm_backward(k, of_k, self.eps, &dk)?])
            }
            None => Ok([dq, dk]),
        }
    }

    pub const fn heads(&self) -> Heads {
        self.heads
    }

    pub const fn eps(&self) -> f32 {
        self.eps
    }

    /// Computes y; keys and values of a cache come before those of x, which are added to it.
    ///
    /// # Errors
    /// candle fails.
    pub fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<&mut BlockCache>) -> Result<Tensor> {
        let Pass { mask, rotation, key } = pass;
        let key = *key;
        let normed = rms_norm(x, &self.input_norm, self.eps)?;
        let [q, k, v] = forward_each([&self.q, &self.k, &self.v], &normed, key)?;
        let [q, k] = self.norm_heads([q, k])?;
        let new = [k, v];
        let [k, v] = match cache {
            Some(cache) => cache.append(mask.past(), new)?,
            None => new,
        };
        let mixed = attention([&q, &k, &v], self.heads, Some(rotation), mask)?;
        let x = add(&self.o.forward_with(&mixed, key)?, x)?;
        let normed = rms_norm(&x, &self.norm, self.eps)?;
        let [gate, up] = forward_each([&self.gate, &self.up], &normed, key)?;
        let wide = swiglu(&gate, &up)?;
        add(&self.down.forward_with(&wide, key)?, &x)
    }

    /// Computes y for the tokens of several texts, 1 × all tokens × hidden, each text with its own adapters, cache and
    /// attention.
    ///
    /// # Errors
    /// candle fails.
    pub fn forward_served<'a>(
        &self,
        x: &Tensor,
        texts: &[ServedText],
        caches: impl Iterator<Item = &'a mut BlockCache>,
        rows: &BatchRows<'_>,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.input_norm, self.eps)?;
        let [q, k] = self.norm_heads([rows.forward(&self.q, &normed)?, rows.forward(&self.k, &normed)?])?;
        let v = rows.forward(&self.v, &normed)?;
        let mixed = texts.iter().zip(caches).map(|(text, cache)| {
            let own = |all: &Tensor| all.narrow(1, text.places.start, text.places.len());
            let [k, v] = cache.append(text.mask.past(), [own(&k)?, own(&v)?])?;
            attention([&own(&q)?, &k, &v], self.heads, Some(&text.rotation), &text.mask)
        });
        let mixed = Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 1)?;
        let x = add(&rows.forward(&self.o, &mixed)?, x)?;
        let normed = rms_norm(&x, &self.norm, self.eps)?;
        let wide = swiglu(&rows.forward(&self.gate, &normed)?, &rows.forward(&self.up, &normed)?)?;
        add(&rows.forward(&self.down, &wide)?, &x)
    }
}
