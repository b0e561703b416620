//! A LLaMA's `config.json`.

use serde_json::{Value as Json, json};

use super::sizes::{Sizes, size};
use crate::gguf::{Gguf, Value};
use crate::{Error, Result};

/// Renders `config.json`.
///
/// # Errors
/// Fails if a setting is missing or not a LLaMA's, and on scaled rotations, which are not known.
pub(super) fn config(gguf: &Gguf, sizes: &Sizes, tied: bool) -> Result<Json> {
    if let Some(key) = gguf.metadata().keys().find(|key| key.starts_with("llama.rope.scaling.")) {
        return Err(Error::data(format!("{} has {key}, but scaled rotations are not known", gguf.path())));
    }
    let theta = match gguf.metadata().get("llama.rope.freq_base") {
        None => 10_000.0,
        Some(_) => positive(gguf, "rope.freq_base")?,
    };
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head,
        "max_position_embeddings": size(gguf, "context_length")?,
        "rms_norm_eps": positive(gguf, "attention.layer_norm_rms_epsilon")?,
        "rope_theta": theta,
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
    Ok(config)
}

/// Returns a float of the architecture, as the shortest decimal of its float32.
fn positive(gguf: &Gguf, key: &str) -> Result<f64> {
    let value = gguf.value(&format!("llama.{key}"))?.as_f64();
    let value = value.and_then(|value| (value as f32).to_string().parse().ok());
    value
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or_else(|| Error::data(format!("{}: llama.{key} is not a finite number above 0", gguf.path())))
}
