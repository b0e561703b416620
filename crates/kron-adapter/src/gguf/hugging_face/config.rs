//! Hyperparameters of a LLaMA, and its `config.json`.

use serde_json::{Value as Json, json};

use crate::gguf::{Gguf, Value};
use crate::{Error, Result};

/// Largest hyperparameter; every known model is far below it, and products of two of them do not overflow.
const MAX: usize = 1 << 24;

/// Sizes of a LLaMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hyperparameters {
    pub vocabulary: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Rows of a head.
    pub head: usize,
    positions: usize,
    epsilon: f64,
    theta: f64,
}

impl Hyperparameters {
    /// Reads and checks the metadata.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.value("general.architecture")?.as_str().unwrap_or("no text");
        if architecture != "llama" {
            return Err(Error::data(format!(
                "{} has the architecture {architecture}, but llama is the one that is known",
                gguf.path()
            )));
        }
        if let Some(key) = gguf.metadata().keys().find(|key| key.starts_with("llama.rope.scaling.")) {
            return Err(Error::data(format!(
                "{} has {key}, but scaled rotations are not known",
                gguf.path()
            )));
        }
        let (hidden, heads) = (size(gguf, "embedding_length")?, size(gguf, "attention.head_count")?);
        let kv_heads = match gguf.metadata().get("llama.attention.head_count_kv") {
            None => heads,
            Some(_) => size(gguf, "attention.head_count_kv")?,
        };
        let head = match gguf.metadata().get("llama.attention.key_length") {
            None => hidden / heads,
            Some(_) => size(gguf, "attention.key_length")?,
        };
        let rotated = match gguf.metadata().get("llama.rope.dimension_count") {
            None => head,
            Some(_) => size(gguf, "rope.dimension_count")?,
        };
        if head == 0 || !head.is_multiple_of(2) || rotated != head || !heads.is_multiple_of(kv_heads) {
            return Err(Error::data(format!(
                "{}: {heads} heads of {head} rows, {rotated} of them rotated, and {kv_heads} key heads are no LLaMA's",
                gguf.path()
            )));
        }
        let tokens = gguf.value("tokenizer.ggml.tokens")?.as_texts();
        Ok(Self {
            vocabulary: tokens.map_or(0, <[String]>::len),
            hidden,
            intermediate: size(gguf, "feed_forward_length")?,
            blocks: size(gguf, "block_count")?,
            heads,
            kv_heads,
            head,
            positions: size(gguf, "context_length")?,
            epsilon: positive(gguf, "attention.layer_norm_rms_epsilon")?,
            theta: match gguf.metadata().get("llama.rope.freq_base") {
                None => 10_000.0,
                Some(_) => positive(gguf, "rope.freq_base")?,
            },
        })
    }

    /// Renders `config.json`.
    pub fn config(&self, gguf: &Gguf, tied: bool) -> Json {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": tied,
        });
        for name in ["bos", "eos"] {
            let id = gguf.metadata().get(&format!("tokenizer.ggml.{name}_token_id"));
            if let Some(id) = id.and_then(Value::as_usize) {
                config[format!("{name}_token_id")] = id.into();
            }
        }
        config
    }
}

/// Returns a size of the architecture.
fn size(gguf: &Gguf, key: &str) -> Result<usize> {
    let value = gguf.value(&format!("llama.{key}"))?;
    value.as_usize().filter(|size| (1..=MAX).contains(size)).ok_or_else(|| {
        Error::data(format!("{}: llama.{key} is not a whole number from 1 to {MAX}", gguf.path()))
    })
}

/// Returns a float of the architecture, as the shortest decimal of its float32.
fn positive(gguf: &Gguf, key: &str) -> Result<f64> {
    let value = gguf.value(&format!("llama.{key}"))?.as_f64();
    let value = value.and_then(|value| (value as f32).to_string().parse().ok());
    value
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or_else(|| Error::data(format!("{}: llama.{key} is not a finite number above 0", gguf.path())))
}
