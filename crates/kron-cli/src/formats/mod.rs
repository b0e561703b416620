//! Adapters in the formats of others, as the one type [`Adapter`].
//!
//! ```text
//! ours.safetensors ───────────────┐              ┌─ ours.safetensors
//! PEFT folder: LoRA, rsLoRA, LoKr ┼─ Loaded ─────┼─ PEFT folder: LoKr, LoRA
//! lycoris.safetensors: LoKr ──────┘   .adapter   └─ lycoris.safetensors: LoKr
//! ```
//!
//! A reader refuses by name what ΔW = s·A ⊗ (B·C) cannot say, a writer what its
//! format cannot. Whatever is rounded stands in the notes.

mod lokr;
pub mod lycoris;
mod matrix;
mod ours;
pub mod peft;
mod place;
mod stored;

use std::path::Path;

use kron_core::Adapter;
use serde::Serialize;

use crate::{Error, Result, Tensors};

pub use place::{Contents, place};

/// How an adapter lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One safetensors file of this project.
    Kron,
    /// A PEFT folder with `peft_type` LORA, alpha / r or alpha / √r.
    PeftLora,
    /// A PEFT folder with `peft_type` LOKR.
    PeftLokr,
    /// One safetensors file of LyCORIS with LoKr modules.
    LycorisLokr,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Kron => "kron",
            Format::PeftLora => "PEFT LoRA",
            Format::PeftLokr => "PEFT LoKr",
            Format::LycorisLokr => "LyCORIS LoKr",
        })
    }
}

/// An adapter that was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where from.
    pub path: String,
    /// In which format.
    pub format: Format,
    /// The layers; what the format says beside them is in the metadata.
    pub adapter: Adapter,
    /// Whether the adapter says that the weights of its model lie as d_in × d_out.
    pub fan_in_fan_out: bool,
    /// What reading changed, one sentence each.
    pub notes: Vec<String>,
}

/// Reads an adapter file, or a PEFT folder by its path or by its weights' path.
///
/// # Errors
/// A file that is damaged, of no known format, or says what no layer here can.
pub fn read(path: &Path) -> Result<Loaded> {
    let loaded = read_any(path)?;
    // Factors that are multiplied as they are read may overflow, though each is finite.
    for layer in loaded.adapter.layers() {
        if let Some(v) = layer.theta().as_slice().iter().find(|v| !v.is_finite()) {
            return Err(Error::data(format!(
                "a product of the factors of {} is {v}, but it has to be finite in float32",
                layer.module()
            )));
        }
    }
    Ok(loaded)
}

fn read_any(path: &Path) -> Result<Loaded> {
    if path.is_dir() {
        return peft::read(path);
    }
    let beside = path.file_name().is_some_and(|name| name == peft::WEIGHTS);
    if let Some(folder) = path.parent().filter(|folder| beside && folder.join(peft::CONFIG).exists()) {
        return peft::read(folder);
    }
    let tensors = Tensors::read(path)?;
    if tensors.metadata(Adapter::RESERVED_KEY).is_some() {
        return ours::read(&tensors);
    }
    if tensors.names().iter().any(|name| name.contains(".lokr_")) {
        return lycoris::read(&tensors);
    }
    Err(Error::data(format!(
        "{} is no adapter: it has neither the metadata {} nor a LoKr tensor, and a PEFT adapter is a folder with an {}",
        tensors.path(),
        Adapter::RESERVED_KEY,
        peft::CONFIG
    )))
}
