//! Configuration of decoders.

use candle_core::{Error, Result};
use serde::Deserialize;

use super::rope::RopeConfig;
use super::sizes::{COUNT, POSITIONS, VOCABULARY, WIDTH, check_eps, check_sizes, within};

/// Kind of a decoder: what its `config.json` leaves unsaid.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum DecoderKind {
    /// LLaMA (arXiv 2302.13971).
    #[default]
    Llama,
    /// Mistral (arXiv 2310.06825), a LLaMA with a window.
    Mistral,
    /// Qwen2 and Qwen2.5 (arXiv 2407.10671): q, k and v have biases.
    Qwen2,
    /// Qwen3 (arXiv 2505.09388): each head of q and k is normalised before its rotation.
    Qwen3,
}

/// Fields of a decoder's `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct DecoderConfig {
    /// Kind; by default LLaMA.
    #[serde(default)]
    pub model_type: DecoderKind,
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
    /// Width of a head; by default the heads share the hidden width, and a Qwen3's are 128 wide.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// `true` if q, k, v and o have biases; a Qwen2 has those of q, k and v whatever it says.
    #[serde(default)]
    pub attention_bias: bool,
    /// `true` if gate, up and down have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Number of tokens that a token attends to; by default all before it.
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// `false` if the window is not in use; by default that of a Qwen is not.
    #[serde(default)]
    pub use_sliding_window: Option<bool>,
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

impl DecoderConfig {
    /// Returns the number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Returns the width of a head.
    pub const fn head(&self) -> usize {
        match (self.head_dim, self.model_type) {
            (Some(width), _) => width,
            (None, DecoderKind::Qwen3) => 128,
            (None, _) => self.hidden_size / self.num_attention_heads,
        }
    }

    /// Returns `true` if q, k and v have biases, and if o has one.
    pub(super) const fn attention_biases(&self) -> (bool, bool) {
        match self.model_type {
            DecoderKind::Qwen2 => (true, false),
            _ => (self.attention_bias, self.attention_bias),
        }
    }

    /// Returns `true` if the heads of q and k are normalised.
    pub(super) const fn norms_heads(&self) -> bool {
        matches!(self.model_type, DecoderKind::Qwen3)
    }

    /// Returns the longest text in tokens that fits the positions and the attention window.
    pub fn positions(&self) -> usize {
        let of_qwen = matches!(self.model_type, DecoderKind::Qwen2 | DecoderKind::Qwen3);
        let window = self.sliding_window.filter(|_| self.use_sliding_window.unwrap_or(!of_qwen));
        self.max_position_embeddings.min(window.unwrap_or(usize::MAX))
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
            return Err(Error::msg(format!("{heads} query heads are not a multiple of {kv} key heads")));
        }
        let own = self.head_dim.is_some() || self.model_type == DecoderKind::Qwen3;
        let shared = own || self.hidden_size.is_multiple_of(heads);
        if !shared || self.head() == 0 || !self.head().is_multiple_of(2) {
            return Err(Error::msg(format!(
                "{heads} heads of width {} on a hidden width of {}: no pairs to rotate",
                self.head(),
                self.hidden_size
            )));
        }
        if self.hidden_act != "silu" {
            return Err(Error::msg(format!(
                "hidden_act is {}, but a decoder's is silu here",
                self.hidden_act
            )));
        }
        self.frequencies().map(drop)
    }

    pub(super) fn frequencies(&self) -> Result<Vec<f64>> {
        let rope = self.rope_parameters.clone().or(self.rope_scaling.clone()).unwrap_or_default();
        let theta = rope.theta().or(self.rope_theta).unwrap_or(10_000.0);
        rope.frequencies(within("rope_theta", theta, 1.0, 1e12)?, self.head() / 2)
    }
}
