//! The formats of adapters on disk, and what reading one gives.

use serde::Serialize;

use crate::limits::Limits;
use crate::lycoris_names::is_lycoris;
use crate::{Adapter, Error, Layer, Result};

/// Callback for progress: takes the amount done since the last call. An error
/// ends the work and removes what was begun; `&|_| Ok(())` never does.
pub type Progress<'a> = &'a dyn Fn(u64) -> Result<()>;

/// Format of an adapter on disk.
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
    /// One safetensors file of LyCORIS with LoKr modules and LoRA modules.
    LycorisMixed,
    /// One safetensors file of Kohya's trainers with LoRA modules, `lora_down` and `lora_up`.
    KohyaLora,
    /// One safetensors file of diffusers with LoRA modules, without a configuration.
    DiffusersLora,
    /// One GGUF file with a LoRA, as llama.cpp and Ollama load it.
    GgufLora,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Kron => "kron",
            Format::PeftLora => "PEFT LoRA",
            Format::PeftLokr => "PEFT LoKr",
            Format::LycorisLokr => "LyCORIS LoKr",
            Format::LycorisMixed => "LyCORIS LoKr and LoRA",
            Format::KohyaLora => "Kohya LoRA",
            Format::DiffusersLora => "diffusers LoRA",
            Format::GgufLora => "GGUF LoRA",
        })
    }
}

/// An adapter that was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Path of the file or folder.
    pub path: String,
    /// Bytes of the file with the weights; what may be made of it depends on them, see [`limits`](crate::limits).
    pub bytes: u64,
    /// Limits that reading left for what follows.
    pub limits: Limits,
    /// Format it was in.
    pub format: Format,
    /// The layers; other fields of the format are in the metadata.
    pub adapter: Adapter,
    /// True if the adapter declares its model's weights to be stored as d_in × d_out.
    pub fan_in_fan_out: bool,
    /// Changes made by reading, one sentence each.
    pub notes: Vec<String>,
    /// Names of tensors or modules of the file that the adapter does not have.
    pub left_out: Vec<String>,
}

impl Loaded {
    pub(crate) fn new(path: String, limits: Limits, bytes: u64, format: Format, adapter: Adapter) -> Self {
        let (notes, left_out) = (Vec::new(), Vec::new());
        Self { path, bytes, limits, format, adapter, fan_in_fan_out: false, notes, left_out }
    }

    /// Returns the first module whose name has an underscore for each dot, as LyCORIS and Kohya's trainers write
    /// it with whatever prefix. Only the model tells its own name.
    pub fn underscored(&self) -> Option<&str> {
        let flat = matches!(self.format, Format::LycorisLokr | Format::LycorisMixed | Format::KohyaLora);
        let mut modules = self.adapter.layers().iter().map(Layer::module);
        modules.find(|module| is_lycoris(module) || (flat && !module.contains('.')))
    }

    /// Checks that a file other than a PEFT LoRA can hold the whole adapter.
    ///
    /// # Errors
    /// Fails if `fan_in_fan_out` is set, which no other format keeps: a weight
    /// stored as d_in × d_out would later take ΔW as if it were d_out × d_in.
    pub fn check_writable(&self) -> Result<()> {
        match self.fan_in_fan_out {
            false => Ok(()),
            true => Err(Error::data(format!(
                "{}: fan_in_fan_out is true, which a PEFT LoRA alone keeps: write it as one, or merge the adapter as it is",
                self.path
            ))),
        }
    }
}
