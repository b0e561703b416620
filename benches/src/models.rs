//! The table of models, `shapes.toml`.

use std::sync::LazyLock;

use kron_core::LayerDims;
use serde::Deserialize;

/// One model: its linear layers, grouped by size.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The name on the command line and in JSON.
    pub name: String,
    /// The name in tables and plots.
    pub title: String,
    /// Hidden size, from which the paper derives its outer factor.
    pub hidden: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Reason for including the model.
    pub why: String,
    /// The layers of one block.
    pub layers: Vec<Layer>,
}

/// The linear layers of one size in a block.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// `q`, `kv`, `gate_up` or `down`.
    pub name: String,
    /// Output width.
    pub d_out: usize,
    /// Input width.
    pub d_in: usize,
    /// Layers of this size in a block.
    pub count: usize,
    /// Their names in the model.
    pub members: String,
}

impl Layer {
    /// Returns the sizes of the layer.
    pub fn dims(&self) -> LayerDims {
        LayerDims { d_out: self.d_out, d_in: self.d_in }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    model: Vec<Model>,
}

/// Returns every model of `shapes.toml`, in its order.
pub fn models() -> &'static [Model] {
    // The file is part of the program and a test reads it.
    static MODELS: LazyLock<Vec<Model>> =
        LazyLock::new(|| toml::from_str::<Table>(include_str!("../shapes.toml")).expect("shapes.toml").model);
    &MODELS
}

/// Returns the names of all models, for messages.
pub fn names() -> String {
    models().iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kron_adapter::plan::paper_split;
    use kron_core::KronShape;

    #[test]
    fn the_papers_outer_factor_divides_every_layer() {
        for model in models() {
            let split = paper_split(model.hidden);
            for l in &model.layers {
                KronShape::kron(l.dims(), split, 8)
                    .unwrap_or_else(|e| panic!("{} {}: {e}", model.name, l.name));
            }
        }
    }

    #[test]
    fn a_body_counts_what_the_paper_counts() {
        let body = |name: &str| -> usize {
            let model = models().iter().find(|m| m.name == name).unwrap();
            let split = paper_split(model.hidden);
            let block = model.layers.iter().map(|l| {
                let shape = KronShape::kron(l.dims(), split, 8).unwrap();
                l.count * shape.params()
            });
            model.blocks * block.sum::<usize>()
        };
        assert_eq!(body("mistral-7b"), 5_676_032);
        assert_eq!(body("llama-2-7b"), 5_241_856);
        assert_eq!(body("llama-3-8b"), 5_676_032);
        assert_eq!(body("distilbert"), 249_120);
    }
}
