//! Names of tensors, and the rows of q and k.

use super::architecture::Architecture;
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

/// Modules that a block of a Qwen3 has besides.
const HEAD_NORMS: [(&str, &str); 2] =
    [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

/// Modules of a block of a Qwen2 that have biases.
const BIASED: [&str; 3] = ["attn_q", "attn_k", "attn_v"];

const WEIGHT: &str = ".weight";
const BIAS: &str = ".bias";

/// Returns the names of a block's tensors in a GGUF, without the block.
fn in_block(architecture: Architecture) -> Vec<String> {
    let norms = HEAD_NORMS.iter().filter(|_| architecture == Architecture::Qwen3);
    let biases = BIASED.iter().filter(|_| architecture == Architecture::Qwen2);
    let weights = INNER.iter().chain(norms).map(|(inner, _)| format!("{inner}{WEIGHT}"));
    weights.chain(biases.map(|inner| format!("{inner}{BIAS}"))).collect()
}

/// Returns the number of tensors of a model.
pub(super) fn count(sizes: &Sizes, tied: bool) -> usize {
    OUTER.len() - usize::from(tied) + sizes.blocks * in_block(sizes.architecture).len()
}

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
    let (_, module) = INNER.iter().chain(&HEAD_NORMS).find(|(inner, _)| *inner == part)?;
    Some((format!("model.layers.{index}.{module}"), Some(index)))
}

/// Returns the names in a GGUF of all tensors of a model.
pub(super) fn sources(sizes: &Sizes, tied: bool) -> impl Iterator<Item = String> {
    let outer = OUTER.iter().filter(move |(outer, _)| !(tied && *outer == "output"));
    let each = in_block(sizes.architecture);
    let inner = (0..sizes.blocks)
        .flat_map(move |block| each.clone().into_iter().map(move |inner| format!("blk.{block}.{inner}")));
    outer.map(|(outer, _)| format!("{outer}{WEIGHT}")).chain(inner)
}

/// Returns Hugging Face's tensor of a GGUF's name; `None` if a model of these sizes has none.
pub(super) fn tensor(source: &str, sizes: &Sizes) -> Option<HuggingFaceTensor> {
    let (stem, is_bias) = match source.strip_suffix(BIAS) {
        Some(stem) => (stem, true),
        None => (source.strip_suffix(WEIGHT)?, false),
    };
    let (module, block) = module(stem)?;
    if let Some(block) = block {
        let inner = source.splitn(3, '.').nth(2)?;
        if block >= sizes.blocks || !in_block(sizes.architecture).iter().any(|known| known == inner) {
            return None;
        }
    } else if is_bias {
        return None;
    }
    let (queries, keys) = (sizes.heads * sizes.head, sizes.kv_heads * sizes.head);
    let mut shape = match module.rsplit('.').next()? {
        "embed_tokens" | "lm_head" => vec![sizes.vocabulary, sizes.hidden],
        "q_proj" => vec![queries, sizes.hidden],
        "k_proj" | "v_proj" => vec![keys, sizes.hidden],
        "o_proj" => vec![sizes.hidden, queries],
        "gate_proj" | "up_proj" => vec![sizes.intermediate, sizes.hidden],
        "down_proj" => vec![sizes.hidden, sizes.intermediate],
        "q_norm" | "k_norm" => vec![sizes.head],
        _ => vec![sizes.hidden],
    };
    shape.truncate(if is_bias { 1 } else { 2 });
    let permuted = sizes.architecture.permutes_rows() && is_rotated(&module);
    let heads = permuted.then_some(Heads { width: sizes.head });
    let end = if is_bias { BIAS } else { WEIGHT };
    Some(HuggingFaceTensor { name: format!("{module}{end}"), shape, source: source.into(), heads })
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
    fn every_tensor_has_its_module() {
        for (architecture, in_block) in
            [(Architecture::Llama, 9), (Architecture::Qwen2, 12), (Architecture::Qwen3, 11)]
        {
            let (vocabulary, hidden, intermediate, head) = (50, 32, 40, 8);
            let sizes = Sizes {
                architecture,
                vocabulary,
                hidden,
                intermediate,
                blocks: 2,
                heads: 4,
                kv_heads: 2,
                head,
            };
            let sources: Vec<_> = sources(&sizes, false).collect();
            assert_eq!((sources.len(), count(&sizes, false)), (3 + 2 * in_block, 3 + 2 * in_block));
            let tensors: Vec<_> = sources.iter().filter_map(|source| tensor(source, &sizes)).collect();
            let names: std::collections::HashSet<_> = tensors.iter().map(|tensor| &tensor.name).collect();
            assert_eq!(names.len(), sources.len());
            let permuted = tensors.iter().filter(|tensor| tensor.heads.is_some()).count();
            assert_eq!(permuted, if architecture == Architecture::Llama { 4 } else { 0 });
            assert!(!super::sources(&sizes, true).any(|source| source == "output.weight"));
            for other in ["blk.2.attn_q.weight", "blk.0.attn_output.bias", "output.bias", "blk.0.attn_q"] {
                assert_eq!(tensor(other, &sizes), None, "{other}");
            }
            let of_qwen2 = tensor("blk.1.attn_k.bias", &sizes).map(|bias| (bias.name, bias.shape));
            let bias = ("model.layers.1.self_attn.k_proj.bias".to_owned(), vec![16]);
            assert_eq!(of_qwen2, (architecture == Architecture::Qwen2).then_some(bias));
            let of_qwen3 = tensor("blk.0.attn_q_norm.weight", &sizes).map(|norm| (norm.name, norm.shape));
            let norm = ("model.layers.0.self_attn.q_norm.weight".to_owned(), vec![8]);
            assert_eq!(of_qwen3, (architecture == Architecture::Qwen3).then_some(norm));
        }
        for other in ["blk.01.attn_q", "blk.+1.attn_q", "blk.attn_q", "blk.0.attn_qkv", "token_embd.0", ""] {
            assert_eq!(module(other), None, "{other}");
        }
    }
}
