//! BERT and DistilBERT encoders (arXiv 1810.04805, 1910.01108), with the tensor names of Hugging Face's checkpoints.

use crate::{DropoutKey, Inject, KronLinear};
use candle_core::{Error, Module, Result, Tensor};
use candle_nn::{Embedding, VarBuilder, embedding};
use serde::Deserialize;

use super::body::{Attention, Body, detach_in_evaluation};
use super::group_trace::forward_each;
use super::norm::Norm;
use super::ops::{AttentionMask, Heads, attention, gelu};
use super::sizes::{COUNT, POSITIONS, VOCABULARY, WIDTH, check_eps, check_sizes};
use super::tokens::Tokens;

/// Fields of a BERT or DistilBERT `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct BertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of a hidden state.
    #[serde(alias = "dim")]
    pub hidden_size: usize,
    /// Number of transformer blocks.
    #[serde(alias = "n_layers")]
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    #[serde(alias = "n_heads")]
    pub num_attention_heads: usize,
    /// Width of a block's feed-forward layer.
    #[serde(alias = "hidden_dim")]
    pub intermediate_size: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Number of segment kinds; 0 for DistilBERT.
    #[serde(default)]
    pub type_vocab_size: usize,
    /// Term added to a variance.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// Activation function of the feed-forward layer.
    #[serde(default = "gelu_name", alias = "activation")]
    pub hidden_act: String,
    /// Kind of position embedding.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

const fn eps() -> f64 {
    1e-12
}

fn gelu_name() -> String {
    "gelu".into()
}

fn absolute() -> String {
    "absolute".into()
}

impl BertConfig {
    /// Fails if a size is out of range, the heads do not divide the width, or a feature is not supported.
    ///
    /// # Errors
    /// A number out of range, a number of heads that does not divide the width, another activation, relative
    /// positions.
    pub fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size, VOCABULARY),
            ("hidden_size", self.hidden_size, WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, COUNT),
            ("num_attention_heads", self.num_attention_heads, COUNT),
            ("intermediate_size", self.intermediate_size, WIDTH),
            ("max_position_embeddings", self.max_position_embeddings, POSITIONS),
            ("type_vocab_size", self.type_vocab_size.max(1), WIDTH),
        ])?;
        check_eps("layer_norm_eps", self.layer_norm_eps)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::msg(format!(
                "num_attention_heads = {} does not divide hidden_size = {}",
                self.num_attention_heads, self.hidden_size
            )));
        }
        for (name, value, known) in [
            ("hidden_act", &self.hidden_act, "gelu"),
            ("position_embedding_type", &self.position_embedding_type, "absolute"),
        ] {
            if value != known {
                return Err(Error::msg(format!("{name} is {value}, but an encoder's is {known} here")));
            }
        }
        Ok(())
    }
}

/// Tensor names in a checkpoint.
struct Names {
    layers: &'static str,
    q: &'static str,
    k: &'static str,
    v: &'static str,
    out: &'static str,
    out_norm: &'static str,
    up: &'static str,
    down: &'static str,
    down_norm: &'static str,
}

const BERT: Names = Names {
    layers: "encoder.layer",
    q: "attention.self.query",
    k: "attention.self.key",
    v: "attention.self.value",
    out: "attention.output.dense",
    out_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    down_norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    layers: "transformer.layer",
    q: "attention.q_lin",
    k: "attention.k_lin",
    v: "attention.v_lin",
    out: "attention.out_lin",
    out_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    down_norm: "output_layer_norm",
};

/// BERT or DistilBERT encoder.
#[derive(Debug)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    /// Embedding of segment 0, the only segment in use.
    segment: Option<Tensor>,
    norm: Norm,
    blocks: Vec<Block>,
    max_len: usize,
}

#[derive(Debug)]
struct Block {
    q: KronLinear,
    k: KronLinear,
    v: KronLinear,
    out: KronLinear,
    out_norm: Norm,
    up: KronLinear,
    down: KronLinear,
    down_norm: Norm,
    heads: Heads,
}

impl Bert {
    /// Builds the encoder from the weights at `vb` and the adapters of `inject`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or `inject` fails.
    pub fn new(config: &BertConfig, inject: &Inject, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let names = if config.type_vocab_size == 0 { &DISTILBERT } else { &BERT };
        let at = vb.pp("embeddings");
        let segment = match config.type_vocab_size {
            0 => None,
            kinds => Some(at.get((kinds, hidden), "token_type_embeddings.weight")?.narrow(0, 0, 1)?),
        };
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(config, names, inject, vb.pp(format!("{}.{i}", names.layers))));
        Ok(Self {
            words: embedding(config.vocab_size, hidden, at.pp("word_embeddings"))?,
            positions: embedding(config.max_position_embeddings, hidden, at.pp("position_embeddings"))?,
            segment,
            norm: norm(hidden, eps, at.pp("LayerNorm"))?,
            blocks: blocks.collect::<Result<_>>()?,
            max_len: config.max_position_embeddings,
        })
    }

    /// Returns the embeddings and the output of each block, all n × len × hidden.
    ///
    /// # Errors
    /// A text has more tokens than the model has positions, texts share a row, or candle fails.
    pub fn states(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Vec<Tensor>> {
        tokens.check_alone(self.max_len)?;
        let ids = tokens.tensor(self.words.embeddings().device())?;
        let positions = self.positions.embeddings().narrow(0, 0, tokens.len)?;
        let mut x = self.words.forward(&ids)?.broadcast_add(&positions)?;
        if let Some(segment) = &self.segment {
            x = x.broadcast_add(segment)?;
        }
        let mut states = vec![self.norm.forward(&x)?];
        let mask = AttentionMask::new(tokens.segments(), 0, Attention::Bidirectional);
        for block in &self.blocks {
            let state = block.forward(&states[states.len() - 1], &mask, dropout)?;
            states.push(detach_in_evaluation(state, dropout));
        }
        Ok(states)
    }
}

impl Body for Bert {
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor> {
        let mut states = self.states(tokens, dropout)?;
        Ok(states.swap_remove(states.len() - 1))
    }

    fn output(&self) -> Option<&KronLinear> {
        None
    }

    fn attention(&self) -> Attention {
        Attention::Bidirectional
    }
}

fn norm(width: usize, eps: f64, vb: VarBuilder) -> Result<Norm> {
    Ok(Norm { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")?, eps: eps as f32 })
}

impl Block {
    fn new(config: &BertConfig, names: &Names, inject: &Inject, vb: VarBuilder) -> Result<Self> {
        let (hidden, wide, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let linear = |d_in, d_out, name| inject.linear(d_in, d_out, true, vb.pp(name));
        Ok(Self {
            q: linear(hidden, hidden, names.q)?,
            k: linear(hidden, hidden, names.k)?,
            v: linear(hidden, hidden, names.v)?,
            out: linear(hidden, hidden, names.out)?,
            out_norm: norm(hidden, eps, vb.pp(names.out_norm))?,
            up: linear(hidden, wide, names.up)?,
            down: linear(wide, hidden, names.down)?,
            down_norm: norm(hidden, eps, vb.pp(names.down_norm))?,
            heads: Heads {
                queries: config.num_attention_heads,
                keys: config.num_attention_heads,
                width: hidden / config.num_attention_heads,
            },
        })
    }

    fn forward(&self, x: &Tensor, mask: &AttentionMask, key: Option<DropoutKey>) -> Result<Tensor> {
        let [q, k, v] = forward_each([&self.q, &self.k, &self.v], x, key)?;
        let mixed = attention([&q, &k, &v], self.heads, None, mask)?;
        let x = self.out_norm.forward(&(self.out.forward_with(&mixed, key)? + x)?)?;
        let wide = gelu(&self.up.forward_with(&x, key)?)?;
        self.down_norm.forward(&(self.down.forward_with(&wide, key)? + &x)?)
    }
}
