//! Transformer block of the LLaMA family, in candle's graph.

use crate::{DropoutKey, KronLinear};
use candle_core::{Result, Tensor};

use super::kv_cache::BlockCache;
use super::layers::Layers;
use super::llama_config::LlamaConfig;
use super::ops::{AttentionMask, Heads, add, attention, rms_norm, swiglu};
use super::rope::Rotation;

/// Transformer block.
#[derive(Debug)]
pub(super) struct Block {
    input_norm: Tensor,
    q: KronLinear,
    k: KronLinear,
    v: KronLinear,
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

impl Block {
    pub fn new(config: &LlamaConfig, layers: &Layers) -> Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (all, kv) = (config.num_attention_heads * config.head(), config.kv_heads() * config.head());
        let (attn, mlp) = (layers.at("self_attn"), layers.at("mlp"));
        let attention = |d_in, d_out, name| attn.linear(d_in, d_out, config.attention_bias, name);
        let mlp = |d_in, d_out, name| mlp.linear(d_in, d_out, config.mlp_bias, name);
        Ok(Self {
            input_norm: layers.vector(hidden, "input_layernorm.weight")?,
            q: attention(hidden, all, "q_proj")?,
            k: attention(hidden, kv, "k_proj")?,
            v: attention(hidden, kv, "v_proj")?,
            o: attention(all, hidden, "o_proj")?,
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
        let q = self.q.forward(&normed, key)?;
        let new = [self.k.forward(&normed, key)?, self.v.forward(&normed, key)?];
        let [k, v] = match cache {
            Some(cache) => cache.append(mask.past(), new)?,
            None => new,
        };
        let mixed = attention([&q, &k, &v], self.heads, Some(rotation), mask)?;
        let x = add(&self.o.forward(&mixed, key)?, x)?;
        let normed = rms_norm(&x, &self.norm, self.eps)?;
        let wide = swiglu(&self.gate.forward(&normed, key)?, &self.up.forward(&normed, key)?)?;
        Ok(add(&self.down.forward(&wide, key)?, &x)?)
    }
}
