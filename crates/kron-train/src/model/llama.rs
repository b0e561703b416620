//! LLaMA-family decoders (arXiv 2302.13971), with the names of Hugging Face's checkpoints.

use candle_core::{D, Module, Tensor};
use candle_nn::{Embedding, VarBuilder, embedding, ops};
use kron_candle::{DropoutKey, Inject, KronLinear};
use serde::Deserialize;

use super::fused::{Seen, softmax};
use super::{Body, Sight};
use crate::data::Tokens;
use crate::error::{Result, invalid};

/// The part of `config.json` that decides the shapes.
#[derive(Clone, Debug, Deserialize)]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of an attention.
    pub num_attention_heads: usize,
    /// Heads of keys and values; as many as of queries when absent.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Width between the linears of a block.
    pub intermediate_size: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Added to a mean square.
    pub rms_norm_eps: f64,
    /// Base of the rotations.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// A rule that stretches the rotations; none is known here.
    #[serde(default)]
    pub rope_scaling: Option<serde_json::Value>,
    /// Whether the embedding is also the last linear.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

const fn theta() -> f64 {
    10_000.0
}

impl LlamaConfig {
    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub const fn head(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// That the heads share the width, in pairs.
    ///
    /// # Errors
    /// Head counts that do not divide, and a rule for longer texts.
    pub fn check(&self) -> Result<()> {
        let (heads, kv) = (self.num_attention_heads, self.kv_heads());
        if heads == 0 || kv == 0 || !self.hidden_size.is_multiple_of(2 * heads) || !heads.is_multiple_of(kv) {
            return Err(invalid(format!(
                "{heads} heads of queries and {kv} of keys do not share a width of {}",
                self.hidden_size
            )));
        }
        match &self.rope_scaling {
            Some(rule) if !rule.is_null() => {
                Err(invalid(format!("rope_scaling is {rule}, but only plain rotations are known here")))
            }
            _ => Ok(()),
        }
    }
}

/// The decoder.
#[derive(Debug)]
pub struct Llama {
    words: Embedding,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Option<KronLinear>,
    rotations: Rotations,
    eps: f32,
}

#[derive(Debug)]
struct Block {
    input_norm: Tensor,
    q: KronLinear,
    k: KronLinear,
    v: KronLinear,
    o: KronLinear,
    norm: Tensor,
    gate: KronLinear,
    up: KronLinear,
    down: KronLinear,
    heads: usize,
    kv_heads: usize,
    eps: f32,
}

/// Cosines and sines, positions × head/2.
#[derive(Debug)]
struct Rotations {
    cos: Tensor,
    sin: Tensor,
}

impl Llama {
    /// Takes the weights at `vb`, and adapters from `inject`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, and what `inject` refuses.
    pub fn new(config: &LlamaConfig, inject: &Inject, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let (hidden, vocab, at) = (config.hidden_size, config.vocab_size, vb.pp("model"));
        let blocks =
            (0..config.num_hidden_layers).map(|i| Block::new(config, inject, at.pp(format!("layers.{i}"))));
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(inject.linear(hidden, vocab, false, vb.pp("lm_head"))?),
        };
        Ok(Self {
            words: embedding(vocab, hidden, at.pp("embed_tokens"))?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: at.get(hidden, "norm.weight")?,
            head,
            rotations: Rotations::new(config, &vb)?,
            eps: config.rms_norm_eps as f32,
        })
    }
}

impl Body for Llama {
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor> {
        let positions = self.rotations.cos.dim(0)?;
        if tokens.len > positions {
            return Err(invalid(format!(
                "a text has {} tokens, but the model has {positions} positions",
                tokens.len
            )));
        }
        let mut x = self.words.forward(&tokens.tensor(self.words.embeddings().device())?)?;
        let seen = Seen::new(&tokens.lens, true);
        for block in &self.blocks {
            x = block.forward(&x, &seen, &self.rotations, dropout)?;
        }
        Ok(ops::rms_norm_slow(&x, &self.norm, self.eps)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden, None)?,
            None => hidden.broadcast_matmul(&self.words.embeddings().t()?)?,
        };
        Ok(Some(logits))
    }

    fn sight(&self) -> Sight {
        Sight::Back
    }
}

impl Block {
    fn new(config: &LlamaConfig, inject: &Inject, vb: VarBuilder) -> Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let kv = config.kv_heads() * config.head();
        let linear = |d_in, d_out, name| inject.linear(d_in, d_out, false, vb.pp(name));
        Ok(Self {
            input_norm: vb.get(hidden, "input_layernorm.weight")?,
            q: linear(hidden, hidden, "self_attn.q_proj")?,
            k: linear(hidden, kv, "self_attn.k_proj")?,
            v: linear(hidden, kv, "self_attn.v_proj")?,
            o: linear(hidden, hidden, "self_attn.o_proj")?,
            norm: vb.get(hidden, "post_attention_layernorm.weight")?,
            gate: linear(hidden, wide, "mlp.gate_proj")?,
            up: linear(hidden, wide, "mlp.up_proj")?,
            down: linear(wide, hidden, "mlp.down_proj")?,
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            eps: config.rms_norm_eps as f32,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        seen: &Seen,
        rotations: &Rotations,
        key: Option<DropoutKey>,
    ) -> Result<Tensor> {
        let (n, len, hidden) = x.dims3()?;
        let width = hidden / self.heads;
        let split = |y: Tensor, heads| y.reshape((n, len, heads, width))?.transpose(1, 2)?.contiguous();
        // Each head of keys and values serves `heads / kv_heads` heads of queries in a row.
        let share = |y: Tensor| {
            let times = self.heads / self.kv_heads;
            y.unsqueeze(2)?
                .broadcast_as((n, self.kv_heads, times, len, width))?
                .reshape((n, self.heads, len, width))
        };
        let normed = ops::rms_norm_slow(x, &self.input_norm, self.eps)?;
        let q = rotations.turn(&split(self.q.forward(&normed, key)?, self.heads)?)?;
        let k = share(rotations.turn(&split(self.k.forward(&normed, key)?, self.kv_heads)?)?)?;
        let v = share(split(self.v.forward(&normed, key)?, self.kv_heads)?)?;
        let scores = q.matmul(&k.transpose(2, 3)?)?;
        let mixed = softmax(&scores, 1.0 / (width as f32).sqrt(), seen)?.matmul(&v.contiguous()?)?;
        let mixed = mixed.transpose(1, 2)?.reshape((n, len, hidden))?;
        let x = (self.o.forward(&mixed, key)? + x)?;
        let normed = ops::rms_norm_slow(&x, &self.norm, self.eps)?;
        let wide = (self.gate.forward(&normed, key)?.silu()? * self.up.forward(&normed, key)?)?;
        Ok((self.down.forward(&wide, key)? + x)?)
    }
}

impl Rotations {
    fn new(config: &LlamaConfig, vb: &VarBuilder) -> Result<Self> {
        let (half, positions) = (config.head() / 2, config.max_position_embeddings);
        let angle = |i: usize| {
            let (position, pair) = ((i / half) as f64, (i % half) as f64);
            position * config.rope_theta.powf(-pair / half as f64)
        };
        let table = |f: fn(f64) -> f64| {
            Tensor::from_iter((0..positions * half).map(|i| f(angle(i)) as f32), vb.device())?
                .reshape((positions, half))?
                .to_dtype(vb.dtype())
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Turns the pairs (i, i + head/2) of n × heads × len × head.
    fn turn(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (.., len, width) = x.dims4()?;
        let (cos, sin) = (self.cos.narrow(0, 0, len)?, self.sin.narrow(0, 0, len)?);
        let (a, b) = (x.narrow(3, 0, width / 2)?, x.narrow(3, width / 2, width / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, second], D::Minus1)
    }
}
