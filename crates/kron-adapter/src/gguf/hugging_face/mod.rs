//! A GGUF of the LLaMA family as Hugging Face's transformers have it: names, configuration, tokenizer.
//!
//! Of the architecture llama, GGUF stores the rows of q and k in the order of interleaved rotations. Within a head of d rows,
//! row 2·j + s of a GGUF is row s·d/2 + j of Hugging Face. Everything that leaves here has Hugging
//! Face's order, so that one adapter fits both; blocks are moved, not quantised again.

mod architecture;
mod config;
mod names;
mod sizes;
mod tensors;
mod tokenizer;
mod weights;

use std::io::Write;
use std::ops::Range;

use kron_core::Dtype;
use serde_json::Value as Json;

use super::blocks::Blocks;
use super::header::Gguf;
use crate::{Error, Progress, Result};
use sizes::Sizes;

pub use names::HuggingFaceTensor;
pub use tensors::LlamaTensors;
pub use weights::ChangeRows;

pub(super) use architecture::Architecture;
pub(super) use names::{Heads, is_rotated, module};

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
    /// Fails if the architecture is unknown, if a setting is missing or unknown, if a tensor has no
    /// counterpart or another shape, and if the tokenizer is of another kind.
    pub fn hugging_face(&self) -> Result<HuggingFace> {
        let sizes = Sizes::read(self)?;
        // Its rotations are scaled, and `config.json` would have to say how.
        if self.tensors().contains_key(names::ROPE_FACTORS) {
            return Err(tensors::unknown(self, names::ROPE_FACTORS, &sizes));
        }
        let tensors = LlamaTensors::of_gguf(self, &sizes)?;
        let tied = tensors.find(names::HEAD).is_none();
        Ok(HuggingFace {
            config: config::config(self, &sizes, tied)?,
            tokenizer: tokenizer::tokenizer(self)?,
            tokenizer_config: tokenizer::config(self)?,
            tensors: tensors.all().to_vec(),
        })
    }

    /// Returns the tensors under Hugging Face's names, whatever the tokenizer and the rotations are.
    ///
    /// # Errors
    /// Fails if the architecture is unknown, if a size is missing, and if a tensor other than
    /// `rope_freqs.weight` has no counterpart or another shape.
    pub fn llama_tensors(&self) -> Result<LlamaTensors> {
        LlamaTensors::of_gguf(self, &Sizes::read(self)?)
    }

    /// Reads the blocks of a tensor, with its rows in Hugging Face's order.
    ///
    /// # Errors
    /// Fails as [`Gguf::blocks`] does.
    pub fn hugging_face_blocks(&mut self, tensor: &HuggingFaceTensor) -> Result<Blocks> {
        let blocks = self.blocks(&tensor.source)?;
        in_order(tensor, blocks)
    }

    /// Reads the blocks of some rows of a tensor in Hugging Face's order; of q and k whole heads.
    ///
    /// # Errors
    /// Fails as [`Gguf::rows`] does, and if the rows of q or k are not whole heads.
    pub fn hugging_face_rows(&mut self, tensor: &HuggingFaceTensor, rows: Range<usize>) -> Result<Blocks> {
        if let Some(Heads { width }) = tensor.heads
            && !(rows.start.is_multiple_of(width) && rows.end.is_multiple_of(width))
        {
            return Err(Error::usage(format!("rows {rows:?} of {} are not heads of {width}", tensor.name)));
        }
        let blocks = self.rows(&tensor.source, rows)?;
        in_order(tensor, blocks)
    }

    /// Writes all tensors, dequantised and then changed, as a safetensors file; `progress` counts the
    /// bytes.
    ///
    /// # Errors
    /// Fails if a value is not finite in `dtype`, if the GGUF cannot be read, and if `change`, `to` or
    /// `progress` fails.
    pub fn write_safetensors(
        &mut self,
        tensors: &[HuggingFaceTensor],
        dtype: Dtype,
        change: ChangeRows,
        to: &mut dyn Write,
        progress: Progress,
    ) -> Result<()> {
        weights::write_safetensors(self, tensors, dtype, change, to, progress)
    }

    /// Writes all tensors, dequantised and then changed, as a GGUF: names, order of tensors and rows, and
    /// metadata are this file's, except that `general.file_type` is that of `dtype` and
    /// `quantize.*`, which describes the quantisation, is left out. Vectors are float32.
    ///
    /// # Errors
    /// Fails as [`Gguf::write_safetensors`] does.
    pub fn write_gguf(
        &mut self,
        tensors: &LlamaTensors,
        dtype: Dtype,
        change: ChangeRows,
        to: &mut dyn Write,
        progress: Progress,
    ) -> Result<()> {
        weights::write_gguf(self, tensors, dtype, change, to, progress)
    }
}

/// Puts whole heads of rows into Hugging Face's order.
fn in_order(tensor: &HuggingFaceTensor, blocks: Blocks) -> Result<Blocks> {
    match tensor.heads {
        None => Ok(blocks),
        Some(heads) => blocks.with_rows(|row| heads.gguf_row(row)),
    }
}
