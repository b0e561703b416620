//! Configuration of ModernBERT encoders.

use candle_core::{Error, Result};
use serde::Deserialize;

use super::ops::Heads;
use super::rope::RopeConfig;
use super::sizes::{COUNT, POSITIONS, VOCABULARY, WIDTH, check_eps, check_sizes, within};

/// Tokens that a block attends to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// All tokens.
    FullAttention,
    /// Those at most half a window away.
    SlidingAttention,
}

/// Fields of a ModernBERT's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ModernBertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Width of a block's feed-forward layer, behind its gate.
    pub intermediate_size: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// Term added to a variance.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// `true` if norms have biases.
    #[serde(default)]
    pub norm_bias: bool,
    /// `true` if the layers of the attention have biases.
    #[serde(default)]
    pub attention_bias: bool,
    /// `true` if the feed-forward layers have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Width of the window of a block with sliding attention, in tokens.
    #[serde(default = "local_attention")]
    pub local_attention: usize,
    /// Distance between blocks with full attention, of which the first block is one.
    #[serde(default = "every")]
    pub global_attn_every_n_layers: usize,
    /// Type of each block, which follows from that distance by default.
    #[serde(default)]
    pub layer_types: Option<Vec<LayerType>>,
    /// Base of the rotary frequencies with full attention.
    #[serde(default = "global_rope_theta")]
    pub global_rope_theta: f64,
    /// Base of the rotary frequencies with sliding attention; by default that of full attention.
    #[serde(default)]
    pub local_rope_theta: Option<f64>,
    /// Bases and scalings of both in files of transformers 5.
    #[serde(default)]
    pub rope_parameters: Option<Box<RopeByType>>,
    /// Activation function of the gate.
    #[serde(default = "gelu")]
    pub hidden_activation: String,
}

/// Rotary settings of each type of blocks.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RopeByType {
    /// Of blocks with full attention.
    #[serde(default)]
    pub full_attention: RopeConfig,
    /// Of blocks with sliding attention.
    #[serde(default)]
    pub sliding_attention: RopeConfig,
}

const fn norm_eps() -> f64 {
    1e-5
}

const fn local_attention() -> usize {
    128
}

const fn every() -> usize {
    3
}

const fn global_rope_theta() -> f64 {
    160_000.0
}

fn gelu() -> String {
    "gelu".into()
}

impl ModernBertConfig {
    /// Fails if a size is out of range, the heads do not divide the width, or a feature is not supported.
    ///
    /// # Errors
    /// A number out of range, heads of no whole or of an odd width, another number of block types than of blocks,
    /// another activation, another kind of rotation.
    pub fn check(&self) -> Result<()> {
        let (heads, hidden) = (self.num_attention_heads, self.hidden_size);
        check_sizes(&[
            ("vocab_size", self.vocab_size, VOCABULARY),
            ("hidden_size", hidden, WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, COUNT),
            ("num_attention_heads", heads, COUNT),
            ("intermediate_size", self.intermediate_size, WIDTH),
            ("max_position_embeddings", self.max_position_embeddings, POSITIONS),
            ("local_attention", self.local_attention, POSITIONS),
            ("global_attn_every_n_layers", self.global_attn_every_n_layers, COUNT),
        ])?;
        check_eps("norm_eps", self.norm_eps)?;
        if !hidden.is_multiple_of(2 * heads) {
            return Err(Error::msg(format!(
                "num_attention_heads = {heads} does not divide hidden_size = {hidden} into heads of an even width"
            )));
        }
        if self.hidden_activation != "gelu" {
            return Err(Error::msg(format!(
                "hidden_activation is {}, but a ModernBERT's is gelu here",
                self.hidden_activation
            )));
        }
        self.layer_types()?;
        self.frequencies(LayerType::FullAttention)?;
        self.frequencies(LayerType::SlidingAttention).map(drop)
    }

    pub(super) fn layer_types(&self) -> Result<Vec<LayerType>> {
        let blocks = self.num_hidden_layers;
        match &self.layer_types {
            Some(types) if types.len() == blocks => Ok(types.clone()),
            Some(types) => Err(Error::msg(format!(
                "layer_types has {} types, but the model has {blocks} blocks",
                types.len()
            ))),
            None => Ok((0..blocks)
                .map(|i| match i.is_multiple_of(self.global_attn_every_n_layers) {
                    true => LayerType::FullAttention,
                    false => LayerType::SlidingAttention,
                })
                .collect()),
        }
    }

    /// Returns the frequencies of a head's pairs, in radians per position.
    pub(super) fn frequencies(&self, kind: LayerType) -> Result<Vec<f64>> {
        let both = self.rope_parameters.clone().unwrap_or_default();
        let global = self.global_rope_theta;
        let (name, rope, theta) = match kind {
            LayerType::FullAttention => ("global_rope_theta", both.full_attention, global),
            LayerType::SlidingAttention => {
                ("local_rope_theta", both.sliding_attention, self.local_rope_theta.unwrap_or(global))
            }
        };
        let theta = within(name, rope.theta().unwrap_or(theta), 1.0, 1e12)?;
        rope.frequencies(theta, self.heads().width / 2)
    }

    pub(super) const fn heads(&self) -> Heads {
        let (queries, keys) = (self.num_attention_heads, self.num_attention_heads);
        Heads { queries, keys, width: self.hidden_size / self.num_attention_heads }
    }
}
