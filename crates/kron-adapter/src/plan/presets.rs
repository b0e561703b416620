//! The models of the paper's tables.

use kron_core::LayerDims;

use super::model::{Linear, Model};

/// A decoder or encoder of equal blocks, and an optional head over the vocabulary.
struct Blocks {
    name: &'static str,
    hidden: usize,
    blocks: u32,
    /// Name and dimensions of each linear layer of a block.
    linears: &'static [(&'static str, LayerDims)],
    /// Width of `lm_head`, adapted too.
    vocab: Option<usize>,
    /// Number of parameters trained without an adapter.
    also_trained: u64,
}

const TABLE: [Blocks; 4] = [
    Blocks {
        name: "Mistral-7B",
        hidden: 4096,
        blocks: 32,
        linears: &[
            ("q_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("k_proj", LayerDims { d_out: 1024, d_in: 4096 }),
            ("v_proj", LayerDims { d_out: 1024, d_in: 4096 }),
            ("o_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("gate_proj", LayerDims { d_out: 14336, d_in: 4096 }),
            ("up_proj", LayerDims { d_out: 14336, d_in: 4096 }),
            ("down_proj", LayerDims { d_out: 4096, d_in: 14336 }),
        ],
        vocab: Some(32000),
        also_trained: 0,
    },
    Blocks {
        name: "LLaMA-2-7B",
        hidden: 4096,
        blocks: 32,
        linears: &[
            ("q_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("k_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("v_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("o_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("gate_proj", LayerDims { d_out: 11008, d_in: 4096 }),
            ("up_proj", LayerDims { d_out: 11008, d_in: 4096 }),
            ("down_proj", LayerDims { d_out: 4096, d_in: 11008 }),
        ],
        vocab: Some(32000),
        also_trained: 0,
    },
    Blocks {
        name: "LLaMA-3-8B",
        hidden: 4096,
        blocks: 32,
        linears: &[
            ("q_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("k_proj", LayerDims { d_out: 1024, d_in: 4096 }),
            ("v_proj", LayerDims { d_out: 1024, d_in: 4096 }),
            ("o_proj", LayerDims { d_out: 4096, d_in: 4096 }),
            ("gate_proj", LayerDims { d_out: 14336, d_in: 4096 }),
            ("up_proj", LayerDims { d_out: 14336, d_in: 4096 }),
            ("down_proj", LayerDims { d_out: 4096, d_in: 14336 }),
        ],
        vocab: Some(128256),
        also_trained: 0,
    },
    Blocks {
        name: "DistilBERT",
        hidden: 768,
        blocks: 6,
        linears: &[
            ("q_lin", LayerDims { d_out: 768, d_in: 768 }),
            ("k_lin", LayerDims { d_out: 768, d_in: 768 }),
            ("v_lin", LayerDims { d_out: 768, d_in: 768 }),
            ("out_lin", LayerDims { d_out: 768, d_in: 768 }),
            ("lin1", LayerDims { d_out: 3072, d_in: 768 }),
            ("lin2", LayerDims { d_out: 768, d_in: 3072 }),
        ],
        vocab: None,
        // The new head for multiple choice: pre_classifier 768 × 768 + 768, classifier 768 + 1.
        also_trained: 590_592 + 769,
    },
];

/// Names of the presets.
pub const PRESETS: [&str; 4] = [TABLE[0].name, TABLE[1].name, TABLE[2].name, TABLE[3].name];

/// Returns a model by name, in any case; `None` if the name is not one of [`PRESETS`].
pub fn preset(name: &str) -> Option<Model> {
    let row = TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name))?;
    let linear = |name: &str, dims, count| Linear { name: name.into(), dims, count };
    let blocks = row.linears.iter().map(|&(name, dims)| linear(name, dims, row.blocks));
    let head = row.vocab.map(|vocab| linear("lm_head", LayerDims { d_out: vocab, d_in: row.hidden }, 1));
    Some(Model {
        name: row.name.into(),
        hidden: row.hidden,
        linears: blocks.chain(head).collect(),
        also_trained: row.also_trained,
    })
}
