//! A model's tensors by Hugging Face's names: the places of an adapter's layers.

use std::path::Path;

use safetensors::Dtype;

use super::architecture::Architecture;
use super::names::{self, HEAD, HuggingFaceTensor, ROPE_FACTORS};
use super::sizes::Sizes;
use crate::gguf::Gguf;
use crate::resolve::BaseModel;
use crate::text::shown;
use crate::{Error, Result};

/// Tensors of a decoder of the LLaMA family (LLaMA, Mistral, Qwen2, Qwen3) under Hugging Face's names, for which an
/// adapter is meant.
///
/// As a [`BaseModel`] they are float32, as which they are dequantised.
#[derive(Clone, Debug)]
pub struct LlamaTensors {
    model: String,
    architecture: Architecture,
    /// Sorted by name.
    tensors: Vec<HuggingFaceTensor>,
}

impl LlamaTensors {
    /// Takes the tensors that follow from a `config.json` of LLaMA, Mistral, Qwen2 or Qwen3.
    ///
    /// # Errors
    /// Fails if the file cannot be read, if its model is of another kind, and if a size is missing or
    /// out of range.
    pub fn of_config(path: &Path) -> Result<Self> {
        let (sizes, tied) = Sizes::of_config(path)?;
        let sources = names::sources(&sizes, tied);
        let tensors = sources.filter_map(|source| names::tensor(&source, &sizes)).collect();
        Ok(Self::sorted(path.display().to_string(), sizes.architecture, tensors))
    }

    /// Takes the tensors of a GGUF, whose names and shapes have to follow from its sizes.
    pub(super) fn of_gguf(gguf: &Gguf, sizes: &Sizes) -> Result<Self> {
        let mut all = Vec::new();
        for (source, tensor) in gguf.tensors() {
            let own = names::tensor(source, sizes);
            let shape = match &own {
                Some(own) => own.shape.clone(),
                None if source == ROPE_FACTORS => vec![sizes.head / 2],
                None => return Err(unknown(gguf, source, sizes)),
            };
            if tensor.shape != shape {
                return Err(Error::data(format!(
                    "{}: tensor {} has shape {:?}, but {shape:?} follows from the metadata",
                    gguf.path(),
                    shown(source),
                    tensor.shape,
                )));
            }
            all.extend(own);
        }
        // Names and shapes are known, so only a missing one can make the number differ.
        let whole = names::count(sizes, !all.iter().any(|tensor| tensor.name == HEAD));
        if all.len() != whole {
            return Err(Error::data(format!(
                "{} has {} tensors, but a {} of {} blocks has {whole}",
                gguf.path(),
                all.len(),
                sizes.architecture.name(),
                sizes.blocks
            )));
        }
        Ok(Self::sorted(gguf.path().into(), sizes.architecture, all))
    }

    fn sorted(model: String, architecture: Architecture, mut tensors: Vec<HuggingFaceTensor>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { model, architecture, tensors }
    }

    /// Returns the architecture.
    pub(in crate::gguf) const fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// All tensors, sorted by name.
    pub fn all(&self) -> &[HuggingFaceTensor] {
        &self.tensors
    }

    /// Returns a tensor.
    pub fn find(&self, name: &str) -> Option<&HuggingFaceTensor> {
        let at = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name));
        at.ok().map(|at| &self.tensors[at])
    }
}

/// Returns the error of a tensor that has no counterpart.
pub(super) fn unknown(gguf: &Gguf, source: &str, sizes: &Sizes) -> Error {
    Error::data(format!(
        "{} has tensor {}, which a {} of {} blocks does not have",
        gguf.path(),
        shown(source),
        sizes.architecture.name(),
        sizes.blocks
    ))
}

impl BaseModel for LlamaTensors {
    fn name(&self) -> String {
        self.model.clone()
    }

    fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    fn tensor(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.find(name).map(|tensor| (Dtype::F32, &tensor.shape[..]))
    }

    fn is_transposed(&self, _: &str) -> Option<bool> {
        Some(false)
    }

    fn is_tied(&self) -> Result<bool> {
        Ok(self.find(HEAD).is_none())
    }
}
