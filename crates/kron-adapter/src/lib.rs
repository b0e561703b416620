//! Adapters of PEFT and LyCORIS, and our own file, as the one type [`Adapter`].
//!
//! ```text
//! ours.safetensors ───────────────┐              ┌─ ours.safetensors
//! PEFT folder: LoRA, rsLoRA, LoKr ┼─ read ─────▶ ┼─ PEFT folder: LoKr, LoRA       ◀── write
//! lycoris.safetensors: LoKr ──────┘   .adapter   └─ lycoris.safetensors: LoKr
//! ```
//!
//! A reader refuses by name what ΔW = s·A ⊗ (B·C) cannot say, a writer what its
//! format cannot. Factors are copied bit for bit; whatever is rounded stands in
//! the notes. Nothing is printed, and a file or folder appears whole or not at all.
//!
//! ```
//! use crate::IfExists;
//! use kron_adapter::{Format, OutputFormat};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/model_llama/lokr");
//! # let temporary = tempfile::tempdir()?;
//! # let out = temporary.path().join("lora");
//! let loaded = kron_adapter::read(folder)?; // a PEFT folder
//! assert_eq!(loaded.format, Format::PeftLokr);
//! kron_adapter::write(&loaded.adapter, OutputFormat::Lora(Default::default()), &out, IfExists::Refuse)?;
//! assert_eq!(kron_adapter::read(&out)?.format, Format::PeftLora);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod adapter;
pub mod algebra;
pub mod elements;
mod error;
pub mod files;
pub mod io;
mod lokr;
pub mod lycoris;
mod matrix;
mod ours;
mod output;
pub mod peft;
pub mod plan;
pub mod resolve;
mod tensor_data;
mod tensors;

use std::path::Path;

use serde::Serialize;

pub use adapter::{Adapter, Layer, ScaleRule, Scaling};
pub use error::{Error, Kind, Result, Suggestion};
pub use io::IfExists;
pub use output::{Output, write_output};
pub use tensors::Tensors;

/// Told how much was done since it was told last; its error ends the work, and
/// what was begun is removed. `&|_| Ok(())` only looks on.
pub type Watch<'a> = &'a dyn Fn(u64) -> Result<()>;

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

impl Loaded {
    /// That a file can say all of the adapter.
    ///
    /// # Errors
    /// `fan_in_fan_out`, which nothing that is written keeps: a weight that lies as
    /// d_in × d_out would then take ΔW as if it lay as d_out × d_in.
    pub fn check_writable(&self) -> Result<()> {
        match self.fan_in_fan_out {
            false => Ok(()),
            true => Err(Error::data(format!(
                "{}: fan_in_fan_out is true, which no format that is written keeps; merge the adapter as it is",
                self.path
            ))),
        }
    }
}

/// A format to write, and what is chosen in it.
#[derive(Clone, Copy, Debug)]
pub enum OutputFormat {
    /// One safetensors file of this project.
    Kron,
    /// A PEFT folder, every layer as a LoRA of rank a_in·r or a_out·r.
    Lora(peft::LoraOptions),
    /// A PEFT folder, LoKr.
    PeftLokr,
    /// One safetensors file of LyCORIS, LoKr.
    Lycoris,
}

impl OutputFormat {
    /// What [`write_output`] puts on the disk: equal adapters, equal bytes. `watch` is
    /// told of every layer that a LoRA is made of.
    ///
    /// Factors are copied bit for bit. In a LoRA a product A_ij·B_pq is rounded
    /// once to float32, and nothing else is.
    ///
    /// # Errors
    /// A layer that has no such form: as LoKr a LoRA, and a shape that PEFT or
    /// LyCORIS would derive differently when it loads the file; as LyCORIS also a
    /// scale that it cannot say; as LoRA a product beyond float32 or 2²⁹ numbers.
    /// NaN or infinity in a factor, and the watch's error.
    pub fn encode(self, adapter: &Adapter, watch: Watch) -> Result<Output> {
        adapter.check_finite()?;
        Ok(match self {
            OutputFormat::Kron => Output::File(adapter.to_bytes()?),
            OutputFormat::Lora(form) => peft::write_lora(adapter, form, watch)?,
            OutputFormat::PeftLokr => peft::write_lokr(adapter)?,
            OutputFormat::Lycoris => Output::File(lycoris::write(adapter)?),
        })
    }
}

/// Writes an adapter in a format, whole or not at all.
///
/// # Errors
/// As [`OutputFormat::encode`] and [`write_output`].
pub fn write(adapter: &Adapter, to: OutputFormat, out: impl AsRef<Path>, existing: IfExists) -> Result<()> {
    write_output(out.as_ref(), &to.encode(adapter, &|_| Ok(()))?, existing, &|_| Ok(()))
}

/// Reads an adapter file, or a PEFT folder by its path or by its weights' path.
///
/// # Errors
/// A file that is damaged, of no known format, or says what no layer here can.
pub fn read(path: impl AsRef<Path>) -> Result<Loaded> {
    let loaded = read_any(path.as_ref())?;
    // Factors that are multiplied as they are read may overflow, though each is finite.
    for layer in loaded.adapter.layers() {
        let theta = layer.theta().as_slice();
        // Without a branch for each number.
        if !theta.iter().fold(true, |all, v| all & v.is_finite())
            && let Some(v) = theta.iter().find(|v| !v.is_finite())
        {
            return Err(Error::data(format!(
                "a product of the factors of {} is {v}, but it has to be finite in float32",
                layer.module()
            )));
        }
    }
    Ok(loaded)
}

fn read_any(path: &Path) -> Result<Loaded> {
    if let Some(folder) = peft::folder(path) {
        return peft::read(folder);
    }
    let tensors = Tensors::read(path)?;
    if tensors.metadata(Adapter::RESERVED_KEY).is_some() {
        return ours::read(&tensors);
    }
    let names = tensors.names();
    // They are LoKr's tensors too, but the scale is not among them.
    if let Some(name) = names.iter().find(|name| name.starts_with(peft::PREFIX)) {
        return Err(Error::data(format!(
            "{}: {name} is a tensor of PEFT, whose scale stands in {}: the file needs that beside it, and the name {}",
            tensors.path(),
            peft::CONFIG,
            peft::WEIGHTS
        )));
    }
    if names.iter().any(|name| name.contains(".lokr_")) {
        return lycoris::read(&tensors);
    }
    Err(Error::data(format!(
        "{} is no adapter: it has neither the metadata {} nor a LoKr tensor, and a PEFT adapter is a folder with an {}",
        tensors.path(),
        Adapter::RESERVED_KEY,
        peft::CONFIG
    )))
}
