//! Decoders of the LLaMA family (arXiv 2302.13971), with the tensor names of Hugging Face's checkpoints.

use candle_core::{Device, Tensor};
use kron_candle::{DropoutKey, KronLinear};
use serde::Deserialize;

use super::body::{Attention, Body, detach_in_evaluation};
use super::kv_cache::{BlockCache, KvCache};
use super::layers::{Embedding, Layers};
use super::ops::{AttentionMask, Heads, attention, rms_norm, swiglu};
use super::rope::{Rope, RopeConfig, Rotation};
use super::sizes::{COUNT, POSITIONS, VOCABULARY, WIDTH, check_eps, check_sizes, within};
use crate::data::Tokens;
use crate::error::{Result, invalid};

/// Fields of a LLaMA or Mistral `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; by default the number of query heads.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Width of a block's feed-forward layer.
    pub intermediate_size: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Term added to a mean square.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies in files before transformers 5; by default 10,000.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies in files before transformers 5.
    #[serde(default)]
    pub rope_scaling: Option<Box<RopeConfig>>,
    /// Base and scaling of the rotary frequencies in files of transformers 5.
    #[serde(default)]
    pub rope_parameters: Option<Box<RopeConfig>>,
    /// Width of a head; by default the heads share the hidden width.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// `true` if q, k, v and o have biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// `true` if gate, up and down have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Number of tokens that a token attends to; by default all before it.
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// Activation function of the gate.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// `true` if the embedding is also the output matrix.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

fn silu() -> String {
    "silu".into()
}

impl LlamaConfig {
    /// Returns the number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Returns the width of a head.
    pub const fn head(&self) -> usize {
        match self.head_dim {
            Some(width) => width,
            None => self.hidden_size / self.num_attention_heads,
        }
    }

    /// Returns the longest text in tokens that fits the positions and the attention window.
    pub fn positions(&self) -> usize {
        self.max_position_embeddings.min(self.sliding_window.unwrap_or(usize::MAX))
    }

    /// Fails if a size is out of range, the heads do not fit the width, or a feature is not supported.
    ///
    /// # Errors
    /// A number out of range, numbers of heads that do not divide, an odd head width, another activation, another
    /// kind of rotation.
    pub fn check(&self) -> Result<()> {
        let (heads, kv) = (self.num_attention_heads, self.kv_heads());
        check_sizes(&[
            ("vocab_size", self.vocab_size, VOCABULARY),
            ("hidden_size", self.hidden_size, WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, COUNT),
            ("num_attention_heads", heads, COUNT),
            ("num_key_value_heads", kv, COUNT),
            ("intermediate_size", self.intermediate_size, WIDTH),
            ("max_position_embeddings", self.max_position_embeddings, POSITIONS),
            ("head_dim", self.head_dim.unwrap_or(1), COUNT),
            ("sliding_window", self.sliding_window.unwrap_or(1), POSITIONS),
        ])?;
        check_eps("rms_norm_eps", self.rms_norm_eps)?;
        if !heads.is_multiple_of(kv) {
            return Err(invalid(format!("{heads} query heads are not a multiple of {kv} key heads")));
        }
        let shared = self.head_dim.is_some() || self.hidden_size.is_multiple_of(heads);
        if !shared || self.head() == 0 || !self.head().is_multiple_of(2) {
            return Err(invalid(format!(
                "{heads} heads of width {} on a hidden width of {}: no pairs to rotate",
                self.head(),
                self.hidden_size
            )));
        }
        if self.hidden_act != "silu" {
            return Err(invalid(format!("hidden_act is {}, but a LLaMA's is silu here", self.hidden_act)));
        }
        self.frequencies().map(drop)
    }

    fn frequencies(&self) -> Result<Vec<f64>> {
        let rope = self.rope_parameters.clone().or(self.rope_scaling.clone()).unwrap_or_default();
        let theta = rope.theta().or(self.rope_theta).unwrap_or(10_000.0);
        rope.frequencies(within("rope_theta", theta, 1.0, 1e12)?, self.head() / 2)
    }
}

/// LLaMA or Mistral decoder.
#[derive(Debug)]
pub struct Llama {
    words: Embedding,
    blocks: Vec<Block>,
    norm: Tensor,
    device: Device,
    head: KronLinear,
    rope: Rope,
    positions: usize,
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
    heads: Heads,
    eps: f32,
}

impl Llama {
    /// Builds the decoder from its layers.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or an adapter does not fit.
    pub fn new(config: &LlamaConfig, layers: &Layers, device: &Device) -> Result<Self> {
        config.check()?;
        let (hidden, vocab, at) = (config.hidden_size, config.vocab_size, layers.at("model"));
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(config, &at.at(format!("layers.{i}"))));
        let words = at.embedding(vocab, hidden, "embed_tokens")?;
        let head = match config.tie_word_embeddings {
            true => words.as_linear(),
            false => layers.linear(hidden, vocab, false, "lm_head")?,
        };
        Ok(Self {
            words,
            blocks: blocks.collect::<Result<_>>()?,
            norm: at.vector(hidden, "norm.weight")?,
            device: device.clone(),
            head,
            rope: Rope::new(config.frequencies()?),
            positions: config.positions(),
            eps: config.rms_norm_eps as f32,
        })
    }

    fn check_len(&self, len: usize) -> Result<()> {
        if len > self.positions {
            let positions = self.positions;
            return Err(invalid(format!("a text has {len} tokens, but the model has {positions} positions")));
        }
        Ok(())
    }
}

impl Body for Llama {
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor> {
        self.check_len(tokens.len)?;
        let mut x = self.words.forward(&tokens.tensor(&self.device)?)?;
        let mask = AttentionMask::new(&tokens.lens, 0, Attention::Causal);
        let rotation = self.rope.rotation(tokens.len, &x)?;
        for block in &self.blocks {
            x = detach_in_evaluation(block.forward(&x, &mask, &rotation, dropout, None)?, dropout);
        }
        Ok(rms_norm(&x, &self.norm, self.eps)?)
    }

    fn continued(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let (past, len) = (cache.len(), cache.len() + ids.len());
        self.check_len(len)?;
        let Some(last) = ids.len().checked_sub(1) else {
            return Err(invalid("a text of no token has no last one, but it is what the next token follows"));
        };
        let mut x = self.words.forward(&Tensor::from_slice(ids, (1, ids.len()), &self.device)?)?;
        let mask = AttentionMask::new(&[len], past, Attention::Causal);
        let rotation = cache.rotation(&self.rope, len, &x)?;
        for (block, cache) in self.blocks.iter().zip(cache.blocks(self.blocks.len())) {
            x = block.forward(&x, &mask, &rotation, None, Some(cache))?.detach();
        }
        cache.set_len(len);
        Ok(rms_norm(&x.narrow(1, last, 1)?, &self.norm, self.eps)?)
    }

    fn output(&self) -> Option<&KronLinear> {
        Some(&self.head)
    }

    fn attention(&self) -> Attention {
        Attention::Causal
    }
}

impl Block {
    fn new(config: &LlamaConfig, layers: &Layers) -> Result<Self> {
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

    fn forward(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        rotation: &Rotation,
        key: Option<DropoutKey>,
        cache: Option<&mut BlockCache>,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.input_norm, self.eps)?;
        let q = self.q.forward(&normed, key)?;
        let new = [self.k.forward(&normed, key)?, self.v.forward(&normed, key)?];
        let [k, v] = match cache {
            Some(cache) => cache.append(mask.past(), new)?,
            None => new,
        };
        let mixed = attention([&q, &k, &v], self.heads, Some(rotation), mask)?;
        let x = (self.o.forward(&mixed, key)? + x)?;
        let normed = rms_norm(&x, &self.norm, self.eps)?;
        let wide = swiglu(&self.gate.forward(&normed, key)?, &self.up.forward(&normed, key)?)?;
        Ok((self.down.forward(&wide, key)? + x)?)
    }
}
