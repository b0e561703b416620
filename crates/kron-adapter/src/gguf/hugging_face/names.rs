//! Names of tensors, and the rows of q and k.

use super::sizes::Sizes;

/// Output matrix; absent if the embedding takes its place.
pub(super) const HEAD: &str = "lm_head.weight";

/// Factors of scaled rotations, which Hugging Face computes from its configuration.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Modules outside the blocks: in a GGUF, and in Hugging Face's models.
const OUTER: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Modules of a block: in a GGUF, and in Hugging Face's models.
const INNER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Number of tensors of a block.
pub(super) const IN_BLOCK: usize = INNER.len();

/// A tensor under Hugging Face's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuggingFaceTensor {
    /// Name.
    pub name: String,
    /// Dimensions, columns last.
    pub shape: Vec<usize>,
    /// Name in the GGUF.
    pub(in crate::gguf) source: String,
    /// Heads whose rows change places.
    pub(in crate::gguf) heads: Option<Heads>,
}

impl HuggingFaceTensor {
    /// Makes the tensor of a module.
    pub(super) fn new(source: &str, module: &str, shape: Vec<usize>, sizes: &Sizes) -> Self {
        let heads = is_rotated(module).then_some(Heads { width: sizes.head });
        Self { name: format!("{module}.weight"), shape, source: source.into(), heads }
    }
}

/// Rows of heads with rotated pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gguf) struct Heads {
    /// Rows of a head.
    pub width: usize,
}

impl Heads {
    /// Returns the row of a GGUF that is this row of Hugging Face.
    pub fn gguf_row(self, row: usize) -> usize {
        let (head, row) = (row / self.width, row % self.width);
        let (half, pair) = (row / (self.width / 2), row % (self.width / 2));
        head * self.width + 2 * pair + half
    }

    /// Puts whole heads of rows into a GGUF's order.
    pub fn gguf_rows<T: Copy>(self, values: &[T], columns: usize) -> Vec<T> {
        let mut all = values.to_vec();
        for (row, values) in values.chunks_exact(columns).enumerate() {
            all[self.gguf_row(row) * columns..][..columns].copy_from_slice(values);
        }
        all
    }
}

/// Returns true if the rows of this module of Hugging Face are rotated.
pub(in crate::gguf) fn is_rotated(module: &str) -> bool {
    module.ends_with(".q_proj") || module.ends_with(".k_proj")
}

/// Returns Hugging Face's module of a weight, named without `.weight`, and the index of its block.
pub(in crate::gguf) fn module(stem: &str) -> Option<(String, Option<usize>)> {
    if let Some((_, module)) = OUTER.iter().find(|(outer, _)| *outer == stem) {
        return Some(((*module).into(), None));
    }
    let (block, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    // Another spelling of the number would be another tensor of the same name.
    let index: usize = block.parse().ok().filter(|index: &usize| index.to_string() == block)?;
    let (_, module) = INNER.iter().find(|(inner, _)| *inner == part)?;
    Some((format!("model.layers.{index}.{module}"), Some(index)))
}

/// Returns the names in a GGUF of all weights of a model.
pub(super) fn sources(blocks: usize, tied: bool) -> impl Iterator<Item = String> {
    let outer = OUTER.iter().filter(move |(outer, _)| !(tied && *outer == "output"));
    let inner = (0..blocks).flat_map(|block| INNER.map(|(inner, _)| format!("blk.{block}.{inner}.weight")));
    outer.map(|(outer, _)| format!("{outer}.weight")).chain(inner)
}

/// Returns Hugging Face's tensor of a GGUF's name; `None` if a model of these sizes has none.
pub(super) fn tensor(source: &str, sizes: &Sizes) -> Option<HuggingFaceTensor> {
    let (module, block) = module(source.strip_suffix(".weight")?)?;
    if block.is_some_and(|block| block >= sizes.blocks) {
        return None;
    }
    let (queries, keys) = (sizes.heads * sizes.head, sizes.kv_heads * sizes.head);
    let shape = match module.rsplit('.').next()? {
        "embed_tokens" | "lm_head" => vec![sizes.vocabulary, sizes.hidden],
        "q_proj" => vec![queries, sizes.hidden],
        "k_proj" | "v_proj" => vec![keys, sizes.hidden],
        "o_proj" => vec![sizes.hidden, queries],
        "gate_proj" | "up_proj" => vec![sizes.intermediate, sizes.hidden],
        "down_proj" => vec![sizes.hidden, sizes.intermediate],
        _ => vec![sizes.hidden],
    };
    Some(HuggingFaceTensor::new(source, &module, shape, sizes))
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
        let rows: Vec<_> = (0..heads * width).flat_map(|row| [row, 100 + row]).collect();
        let want: Vec<_> = of_gguf.iter().flat_map(|row| [*row, 100 + row]).collect();
        assert_eq!(Heads { width }.gguf_rows(&rows, 2), want);
    }

    #[test]
    fn every_weight_has_its_module() {
        let sources: Vec<_> = sources(2, false).collect();
        assert_eq!(sources.len(), 3 + 2 * IN_BLOCK);
        let modules: std::collections::HashSet<_> =
            sources.iter().filter_map(|source| module(source.strip_suffix(".weight")?)).collect();
        assert_eq!(modules.len(), sources.len());
        assert!(!super::sources(2, true).any(|source| source == "output.weight"));
        for other in ["blk.01.attn_q", "blk.+1.attn_q", "blk.attn_q", "blk.0.attn_qkv", "token_embd.0", ""] {
            assert_eq!(module(other), None, "{other}");
        }
    }
}
