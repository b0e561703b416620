//! A base model as its names and shapes.

use std::collections::BTreeMap;

use kron_core::LayerDims;
use safetensors::Dtype;

use crate::Result;
use crate::matrix::without_ones;

/// Names and shapes of a model's tensors, and the facts of its configuration
/// that decide where a layer goes.
pub trait BaseModel {
    /// Name of the model in messages, usually its path.
    fn name(&self) -> String;

    /// Names of all tensors, in any order.
    fn tensor_names(&self) -> impl Iterator<Item = &str>;

    /// Returns the dtype and the shape of a tensor, `None` if the model does not have it.
    fn tensor(&self, name: &str) -> Option<(Dtype, &[usize])>;

    /// Returns true if the weight of a module is stored as d_in × d_out, as GPT-2's
    /// `Conv1D` stores it; `None` if no configuration tells.
    fn is_transposed(&self, _module: &str) -> Option<bool> {
        None
    }

    /// Returns true if the output head is the input embedding.
    ///
    /// # Errors
    /// Fails if the configuration contradicts itself.
    fn is_tied(&self) -> Result<bool> {
        Ok(false)
    }

    /// Returns the embedding's weight that stands for the head's weight of this name, which the model lacks because
    /// both are one.
    fn tied_embedding(&self, head: &str) -> Option<&'static str> {
        let mut pairs = TIED_PAIRS.into_iter().filter(|(_, other)| *other == head);
        let (embedding, _) = pairs.find(|(embedding, _)| self.tensor(embedding).is_some())?;
        (self.tensor(head).is_none() && self.is_tied().is_ok_and(|tied| tied)).then_some(embedding)
    }

    /// Returns the widths of a module that is a linear layer or a 1×1 convolution.
    fn linear(&self, module: &str) -> Option<LayerDims> {
        let &[rows, cols] = without_ones(self.weight(module)?.1) else { return None };
        Some(match self.is_transposed(module) {
            Some(true) => LayerDims { d_out: cols, d_in: rows },
            _ => LayerDims { d_out: rows, d_in: cols },
        })
    }

    /// Names of all modules that have a weight.
    fn modules(&self) -> impl Iterator<Item = &str> {
        self.tensor_names().filter_map(|name| name.strip_suffix(".weight"))
    }

    /// Returns the dtype and the shape of a module's weight.
    fn weight(&self, module: &str) -> Option<(Dtype, &[usize])> {
        self.tensor(&weight_name(module))
    }
}

/// Name of a module's weight.
pub(super) fn weight_name(module: &str) -> String {
    format!("{module}.weight")
}

/// Names of an embedding's weight, and of the head that a causal model of these names has.
pub const TIED_PAIRS: [(&str, &str); 5] = [
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    ("transformer.wte.weight", "lm_head.weight"),
    ("transformer.word_embeddings.weight", "lm_head.weight"),
];

/// Modules whose weights a model ties to each other.
const TIED: [&str; 4] = ["lm_head", "embed_tokens", "wte", "word_embeddings"];

/// True for the module of an input embedding or an output head.
pub(super) fn can_be_tied(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|last| TIED.contains(&last))
}

/// A base model without a configuration: a list of tensors.
#[derive(Clone, Debug)]
pub struct BaseTensors {
    name: String,
    tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
}

impl BaseTensors {
    /// Makes a model of these tensors: name, dtype and shape of each.
    pub fn new<N: Into<String>>(
        name: impl Into<String>,
        tensors: impl IntoIterator<Item = (N, Dtype, Vec<usize>)>,
    ) -> Self {
        let tensors = tensors.into_iter().map(|(name, dtype, shape)| (name.into(), (dtype, shape)));
        Self { name: name.into(), tensors: tensors.collect() }
    }
}

impl BaseModel for BaseTensors {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn tensor(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensors.get(name).map(|(dtype, shape)| (*dtype, &shape[..]))
    }
}
