//! A model's `config.json`.

use serde_json::{Value as Json, json};

use super::architecture::Architecture;
use super::sizes::{Sizes, key_of, size};
use crate::gguf::{Gguf, Value};
use crate::{Error, Result};

/// Renders `config.json`.
///
/// # Errors
/// Fails if a setting is missing or out of range, and on scaled rotations, which are not known.
pub(super) fn config(gguf: &Gguf, sizes: &Sizes, tied: bool) -> Result<Json> {
    let architecture = sizes.architecture;
    let scaling = key_of(architecture, "rope.scaling.");
    if let Some(key) = gguf.metadata().keys().find(|key| key.starts_with(&scaling)) {
        return Err(Error::data(format!("{} has {key}, but scaled rotations are not known", gguf.path())));
    }
    let positive = |key: &str| positive(gguf, architecture, key);
    let theta = match gguf.metadata().get(&key_of(architecture, "rope.freq_base")) {
        None => 10_000.0,
        Some(_) => positive("rope.freq_base")?,
    };
    let mut config = json!({
        "architectures": [architecture.class()],
        "model_type": architecture.name(),
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head,
        "max_position_embeddings": size(gguf, architecture, "context_length")?,
        "rms_norm_eps": positive("attention.layer_norm_rms_epsilon")?,
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
fn positive(gguf: &Gguf, architecture: Architecture, key: &str) -> Result<f64> {
    let key = key_of(architecture, key);
    let value = gguf.value(&key)?.as_f64();
    let value = value.and_then(|value| (value as f32).to_string().parse().ok());
    value
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or_else(|| Error::data(format!("{}: {key} is not a finite number above 0", gguf.path())))
}
