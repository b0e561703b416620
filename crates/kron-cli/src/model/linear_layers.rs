//! The linear layers of each family, with the fields that hold their sizes.

use kron_adapter::plan::{Linear, Model};
use kron_core::LayerDims;

use super::config::Config;
use super::family::Family;
use crate::Result;

/// Types whose published configurations leave out fields equal to the defaults of transformers.
const TYPES_WITH_DEFAULTS: [&str; 3] = ["gemma2", "gemma3", "gemma3_text"];
/// Defaults of `Gemma2Config` and `Gemma3TextConfig` in transformers.
const DEFAULTS: [(&str, usize); 3] =
    [("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256)];

/// A model's linear layers, with remarks.
#[derive(Debug)]
pub struct Layers {
    /// Layers for the planner.
    pub model: Model,
    /// Remarks on layers that are not plain linear layers, one sentence each.
    pub notes: Vec<String>,
}

/// Returns the linear layers of a model.
///
/// # Errors
/// The family is unknown, or a field is missing, not a positive integer, or out of range.
pub fn linear_layers(config: &Config) -> Result<Layers> {
    let family = config.family()?;
    match family {
        Family::Bert => encoder(config),
        Family::DistilBert => distilbert(config),
        Family::ModernBert => modern_bert(config),
        Family::Gpt2 => gpt2(config),
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::Gemma => {
            decoder(config, family)
        }
    }
}

/// LLaMA and its descendants: grouped queries, a gated feed-forward, an output head.
fn decoder(config: &Config, family: Family) -> Result<Layers> {
    let hidden = config.required("hidden_size")?;
    let ffn = config.required("intermediate_size")?;
    let mut notes = Vec::new();
    let heads = published(config, "num_attention_heads", &mut notes)?;
    let head_dim = head_dim(config, family, hidden, heads, &mut notes)?;
    // Only LLaMA derives the default from the other fields.
    let kv_heads = match family {
        Family::Llama => config.optional("num_key_value_heads")?.unwrap_or(heads),
        _ => published(config, "num_key_value_heads", &mut notes)?,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.refused(format!(
            "num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}"
        )));
    }
    let (q, kv) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
    if q != hidden {
        notes.push(format!("q_proj and o_proj are not square: {heads} heads of {head_dim} make {q}, the hidden size is {hidden}"));
    }
    let linears = [
        ("q_proj", q, hidden),
        ("k_proj", kv, hidden),
        ("v_proj", kv, hidden),
        ("o_proj", hidden, q),
        ("gate_proj", ffn, hidden),
        ("up_proj", ffn, hidden),
        ("down_proj", hidden, ffn),
    ];
    let blocks = config.required("num_hidden_layers")?;
    finish(config, hidden, blocks, &linears, Some(hidden), notes)
}

/// Returns a field. If the configuration may leave it out, returns the default of transformers and adds a note.
fn published(config: &Config, field: &str, notes: &mut Vec<String>) -> Result<usize> {
    let model_type = config.text("model_type").unwrap_or_default();
    let default =
        DEFAULTS.iter().find(|(name, _)| *name == field && TYPES_WITH_DEFAULTS.contains(&model_type));
    match (config.optional(field)?, default) {
        (None, Some((_, default))) => {
            notes.push(format!("the configuration lacks {field}: {default} is the default of {model_type}"));
            Ok(*default)
        }
        _ => config.required(field),
    }
}

/// Returns the width of a head, which may differ from hidden / heads.
fn head_dim(
    config: &Config,
    family: Family,
    hidden: usize,
    heads: usize,
    notes: &mut Vec<String>,
) -> Result<usize> {
    let own_default = matches!(family, Family::Qwen3 | Family::Gemma);
    match config.optional("head_dim")? {
        Some(dim) => Ok(dim),
        // These families do not derive it from the other fields.
        None if own_default => published(config, "head_dim", notes),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(config.refused(format!(
            "num_attention_heads = {heads} does not divide hidden_size = {hidden}, and head_dim is missing"
        ))),
    }
}

/// BERT and RoBERTa.
fn encoder(config: &Config) -> Result<Layers> {
    let hidden = config.required("hidden_size")?;
    let ffn = config.required("intermediate_size")?;
    let linears = [
        ("query", hidden, hidden),
        ("key", hidden, hidden),
        ("value", hidden, hidden),
        ("attention.output.dense", hidden, hidden),
        ("intermediate.dense", ffn, hidden),
        ("output.dense", hidden, ffn),
    ];
    finish(config, hidden, config.required("num_hidden_layers")?, &linears, None, Vec::new())
}

fn distilbert(config: &Config) -> Result<Layers> {
    let hidden = config.required("dim")?;
    let ffn = config.required("hidden_dim")?;
    let linears = [
        ("q_lin", hidden, hidden),
        ("k_lin", hidden, hidden),
        ("v_lin", hidden, hidden),
        ("out_lin", hidden, hidden),
        ("lin1", ffn, hidden),
        ("lin2", hidden, ffn),
    ];
    finish(config, hidden, config.required("n_layers")?, &linears, None, Vec::new())
}

/// ModernBERT: q, k and v in one layer, and a gate and what it gates in another.
fn modern_bert(config: &Config) -> Result<Layers> {
    let hidden = config.required("hidden_size")?;
    let ffn = config.required("intermediate_size")?;
    let linears = [
        ("attn.Wqkv", hidden.saturating_mul(3), hidden),
        ("attn.Wo", hidden, hidden),
        ("mlp.Wi", ffn.saturating_mul(2), hidden),
        ("mlp.Wo", hidden, ffn),
    ];
    let notes = vec!["attn.Wqkv is q, k and v in one layer, mlp.Wi the gate and what it gates".to_string()];
    finish(config, hidden, config.required("num_hidden_layers")?, &linears, None, notes)
}

fn gpt2(config: &Config) -> Result<Layers> {
    let hidden = config.required("n_embd")?;
    let ffn = config.optional("n_inner")?.unwrap_or(hidden.saturating_mul(4));
    let linears = [
        ("attn.c_attn", hidden.saturating_mul(3), hidden),
        ("attn.c_proj", hidden, hidden),
        ("mlp.c_fc", ffn, hidden),
        ("mlp.c_proj", hidden, ffn),
    ];
    let notes = vec![
        "c_attn, c_proj and c_fc are Conv1D: their weights are stored as d_in × d_out".to_string(),
        "attn.c_attn is q, k and v in one layer".to_string(),
    ];
    finish(config, hidden, config.required("n_layer")?, &linears, Some(hidden), notes)
}

/// Returns the blocks' layers, and the output head unless it is tied.
fn finish(
    config: &Config,
    hidden: usize,
    blocks: usize,
    linears: &[(&str, usize, usize)],
    head: Option<usize>,
    mut notes: Vec<String>,
) -> Result<Layers> {
    let refused = |e: kron_adapter::Error| config.refused(e);
    let count = u32::try_from(blocks)
        .map_err(|_| config.refused(format!("{blocks} blocks are more than {}", u32::MAX)))?;
    let layers =
        linears.iter().map(|&(name, d_out, d_in)| Linear::new(name, LayerDims { d_out, d_in }, count));
    let mut layers = layers.collect::<kron_adapter::Result<Vec<_>>>().map_err(refused)?;
    if let Some(d_in) = head {
        if config.tied()? {
            notes.push(
                "lm_head is tied to the embedding and left out: adapting one would change the other".into(),
            );
        } else {
            let vocab = config.required("vocab_size")?;
            layers.push(Linear::new("lm_head", LayerDims { d_out: vocab, d_in }, 1).map_err(refused)?);
        }
    }
    let name = config.text("_name_or_path").filter(|name| !name.is_empty());
    let model = Model::new(name.unwrap_or(config.path()), hidden, layers, 0).map_err(refused)?;
    Ok(Layers { model, notes })
}
