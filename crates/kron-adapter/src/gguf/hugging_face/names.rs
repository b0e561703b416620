//! Names of tensors, and the rows of q and k.

use super::config::Hyperparameters;
use crate::gguf::Gguf;
use crate::text::shown;
use crate::{Error, Result};

/// Output matrix; absent if the embedding takes its place.
pub(super) const HEAD: &str = "lm_head.weight";

/// A tensor under Hugging Face's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuggingFaceTensor {
    /// Name.
    pub name: String,
    /// Dimensions, columns last.
    pub shape: Vec<usize>,
    /// Name in the GGUF.
    pub(super) source: String,
    /// Heads whose rows change places.
    pub(super) heads: Option<Heads>,
}

/// Rows of heads with rotated pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    /// Rows of a head.
    width: usize,
}

impl Heads {
    /// Returns the row of a GGUF that is this row of Hugging Face.
    pub fn gguf_row(self, row: usize) -> usize {
        let (head, row) = (row / self.width, row % self.width);
        let (half, pair) = (row / (self.width / 2), row % (self.width / 2));
        head * self.width + 2 * pair + half
    }
}

/// Returns all tensors under Hugging Face's names, sorted.
pub(super) fn tensors(gguf: &Gguf, model: &Hyperparameters) -> Result<Vec<HuggingFaceTensor>> {
    let mut all = Vec::new();
    for (source, tensor) in gguf.tensors() {
        let Some((name, shape)) = name_and_shape(source, model) else {
            return Err(Error::data(format!(
                "{} has tensor {}, which a LLaMA of {} blocks does not have",
                gguf.path(),
                shown(source),
                model.blocks
            )));
        };
        if tensor.shape != shape {
            return Err(Error::data(format!(
                "{}: tensor {} has shape {:?}, but {shape:?} follows from the metadata",
                gguf.path(),
                shown(source),
                tensor.shape
            )));
        }
        let rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        let heads = rotated.then_some(Heads { width: model.head });
        all.push(HuggingFaceTensor { name, shape, source: source.clone(), heads });
    }
    // Names and shapes are known, so only a missing one can make the number differ.
    let whole = 2 + 9 * model.blocks + usize::from(all.iter().any(|tensor| tensor.name == HEAD));
    if all.len() != whole {
        return Err(Error::data(format!(
            "{} has {} tensors, but a LLaMA of {} blocks has {whole}",
            gguf.path(),
            all.len(),
            model.blocks
        )));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Returns Hugging Face's name of a tensor, and its shape.
fn name_and_shape(source: &str, m: &Hyperparameters) -> Option<(String, Vec<usize>)> {
    let stem = source.strip_suffix(".weight")?;
    match stem {
        "token_embd" => return Some(("model.embed_tokens.weight".into(), vec![m.vocabulary, m.hidden])),
        "output_norm" => return Some(("model.norm.weight".into(), vec![m.hidden])),
        "output" => return Some((HEAD.into(), vec![m.vocabulary, m.hidden])),
        _ => {}
    }
    let (block, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    // Another spelling of the number would be another tensor of the same name.
    let index: usize =
        block.parse().ok().filter(|index: &usize| *index < m.blocks && index.to_string() == block)?;
    let (queries, keys) = (m.heads * m.head, m.kv_heads * m.head);
    let (name, shape) = match part {
        "attn_norm" => ("input_layernorm", vec![m.hidden]),
        "ffn_norm" => ("post_attention_layernorm", vec![m.hidden]),
        "attn_q" => ("self_attn.q_proj", vec![queries, m.hidden]),
        "attn_k" => ("self_attn.k_proj", vec![keys, m.hidden]),
        "attn_v" => ("self_attn.v_proj", vec![keys, m.hidden]),
        "attn_output" => ("self_attn.o_proj", vec![m.hidden, queries]),
        "ffn_gate" => ("mlp.gate_proj", vec![m.intermediate, m.hidden]),
        "ffn_up" => ("mlp.up_proj", vec![m.intermediate, m.hidden]),
        "ffn_down" => ("mlp.down_proj", vec![m.hidden, m.intermediate]),
        _ => return None,
    };
    Some((format!("model.layers.{index}.{name}.weight"), shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The conversion of a checkpoint: reshape to (heads, 2, width / 2), swap the last two axes.
    #[test]
    fn rows_are_the_inverse_of_the_conversion_s() {
        let (heads, width) = (3, 8);
        let mut of_gguf = Vec::new();
        for head in 0..heads {
            for pair in 0..width / 2 {
                for half in 0..2 {
                    of_gguf.push(head * width + half * (width / 2) + pair);
                }
            }
        }
        for row in 0..heads * width {
            assert_eq!(of_gguf[Heads { width }.gguf_row(row)], row);
        }
    }
}
