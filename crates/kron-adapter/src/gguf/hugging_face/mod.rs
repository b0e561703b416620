//! A GGUF of the LLaMA family as Hugging Face's transformers have it: names, configuration, tokenizer.
//!
//! GGUF stores the rows of q and k in the order of interleaved rotations. Within a head of d rows,
//! row 2·j + s of a GGUF is row s·d/2 + j of Hugging Face. Everything that leaves here has Hugging
//! Face's order, so that one adapter fits both; blocks are moved, not quantised again.

mod config;
mod names;
mod tokenizer;
mod weights;

use std::io::Write;

use kron_core::Dtype;
use serde_json::Value as Json;

use super::blocks::Blocks;
use super::header::Gguf;
use crate::{Progress, Result};
pub use names::HuggingFaceTensor;

/// A model under Hugging Face's names.
#[derive(Clone, Debug)]
pub struct HuggingFace {
    /// `config.json`.
    pub config: Json,
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`, with the chat template.
    pub tokenizer_config: Json,
    /// Tensors, sorted by name.
    pub tensors: Vec<HuggingFaceTensor>,
}

impl Gguf {
    /// Returns the model under Hugging Face's names.
    ///
    /// # Errors
    /// Fails if the architecture is not llama, if a setting is missing or unknown, if a tensor has no
    /// counterpart or another shape, and if the tokenizer is of another kind.
    pub fn hugging_face(&self) -> Result<HuggingFace> {
        let hyperparameters = config::Hyperparameters::read(self)?;
        let tensors = names::tensors(self, &hyperparameters)?;
        let tied = !tensors.iter().any(|tensor| tensor.name == names::HEAD);
        Ok(HuggingFace {
            config: hyperparameters.config(self, tied),
            tokenizer: tokenizer::tokenizer(self)?,
            tokenizer_config: tokenizer::config(self)?,
            tensors,
        })
    }

    /// Reads the blocks of a tensor, with its rows in Hugging Face's order.
    ///
    /// # Errors
    /// Fails as [`Gguf::blocks`] does.
    pub fn hugging_face_blocks(&mut self, tensor: &HuggingFaceTensor) -> Result<Blocks> {
        let blocks = self.blocks(&tensor.source)?;
        match tensor.heads {
            None => Ok(blocks),
            Some(heads) => blocks.with_rows(|row| heads.gguf_row(row)),
        }
    }

    /// Writes all tensors, dequantised, as a safetensors file; `progress` counts the bytes.
    ///
    /// # Errors
    /// Fails if a value is not finite in `dtype`, if the GGUF cannot be read, and if `to` or
    /// `progress` fails.
    pub fn write_safetensors(
        &mut self,
        tensors: &[HuggingFaceTensor],
        dtype: Dtype,
        to: &mut dyn Write,
        progress: Progress,
    ) -> Result<()> {
        weights::write(self, tensors, dtype, to, progress)
    }
}
