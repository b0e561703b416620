//! The models of the paper's tables.

use super::{Linear, Model};

/// A decoder or encoder of equal blocks, and an optional head over the vocabulary.
struct Blocks {
    name: &'static str,
    hidden: usize,
    blocks: u32,
    /// (name, d_out, d_in) of each linear layer of a block.
    linears: &'static [(&'static str, usize, usize)],
    /// Width of `lm_head`, adapted too.
    vocab: Option<usize>,
    /// Trained without an adapter.
    also_trained: u64,
}

const TABLE: [Blocks; 4] = [
    Blocks {
        name: "Mistral-7B",
        hidden: 4096,
        blocks: 32,
        linears: &[
            ("q_proj", 4096, 4096),
            ("k_proj", 1024, 4096),
            ("v_proj", 1024, 4096),
            ("o_proj", 4096, 4096),
            ("gate_proj", 14336, 4096),
            ("up_proj", 14336, 4096),
            ("down_proj", 4096, 14336),
        ],
        vocab: Some(32000),
        also_trained: 0,
    },
    Blocks {
        name: "LLaMA-2-7B",
        hidden: 4096,
        blocks: 32,
        linears: &[
            ("q_proj", 4096, 4096),
            ("k_proj", 4096, 4096),
            ("v_proj", 4096, 4096),
            ("o_proj", 4096, 4096),
            ("gate_proj", 11008, 4096),
            ("up_proj", 11008, 4096),
            ("down_proj", 4096, 11008),
        ],
        vocab: Some(32000),
        also_trained: 0,
    },
    Blocks {
        name: "LLaMA-3-8B",
        hidden: 4096,
        blocks: 32,
        linears: &[
            ("q_proj", 4096, 4096),
            ("k_proj", 1024, 4096),
            ("v_proj", 1024, 4096),
            ("o_proj", 4096, 4096),
            ("gate_proj", 14336, 4096),
            ("up_proj", 14336, 4096),
            ("down_proj", 4096, 14336),
        ],
        vocab: Some(128256),
        also_trained: 0,
    },
    Blocks {
        name: "DistilBERT",
        hidden: 768,
        blocks: 6,
        linears: &[
            ("q_lin", 768, 768),
            ("k_lin", 768, 768),
            ("v_lin", 768, 768),
            ("out_lin", 768, 768),
            ("lin1", 3072, 768),
            ("lin2", 768, 3072),
        ],
        vocab: None,
        // The new head for multiple choice: pre_classifier 768 × 768 + 768, classifier 768 + 1.
        also_trained: 590_592 + 769,
    },
];

/// The names that [`preset`] knows.
pub const PRESETS: [&str; 4] = [TABLE[0].name, TABLE[1].name, TABLE[2].name, TABLE[3].name];

/// A model by name, in any case; `None` when it is not one of [`PRESETS`].
pub fn preset(name: &str) -> Option<Model> {
    let row = TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name))?;
    let linear = |name: &str, d_out, d_in, count| Linear { name: name.into(), d_out, d_in, count };
    let blocks = row.linears.iter().map(|&(name, d_out, d_in)| linear(name, d_out, d_in, row.blocks));
    let head = row.vocab.map(|vocab| linear("lm_head", vocab, row.hidden, 1));
    Some(Model {
        name: row.name.into(),
        hidden: row.hidden,
        linears: blocks.chain(head).collect(),
        also_trained: row.also_trained,
    })
}
