//! Adapters on the disk, in our format and in those of others.

use std::path::Path;

use candle_core::{Error, Result};
use kron_adapter::OutputFormat;
use kron_adapter::{Adapter, IfExists};

use crate::Adapters;

/// Reads an adapter for [`Inject::trained`](crate::Inject::trained): our file, or
/// a PEFT folder with LoRA, rsLoRA or LoKr.
///
/// PEFT names a module by its path in the model after `base_model.model.`; it
/// has to be the prefix under which the model makes that layer. A LyCORIS file
/// has underscores for the dots, which [`kron_adapter::resolve::resolve_module_names`]
/// undoes. What reading rounds, [`kron_adapter::read`] tells.
///
/// # Errors
/// A file or folder that is damaged, of no known format, or says what
/// ΔW = s·A ⊗ (B·C) cannot; and `fan_in_fan_out`, which an [`Adapter`] has no
/// place for, so that saving it would lose it.
pub fn load(path: impl AsRef<Path>) -> Result<Adapter> {
    let loaded = kron_adapter::read(path).map_err(Error::wrap)?;
    loaded.check_writable().map_err(Error::wrap)?;
    Ok(loaded.adapter)
}

impl Adapters {
    /// Writes the adapter file that `docs/FORMAT.md` describes, whole or not at all.
    ///
    /// # Errors
    /// NaN or infinity in a factor, and what the system refuses.
    pub fn save(&self, path: impl AsRef<Path>, existing: IfExists) -> Result<()> {
        self.to_adapter()?.write(path, existing).map_err(Error::wrap)
    }

    /// Writes a PEFT folder or a LyCORIS file, whole or not at all: as
    /// [`OutputFormat::PeftLokr`] the factors bit for bit, as [`OutputFormat::Lora`] a LoRA of the
    /// same ΔW, whose products A·B are rounded once to float32.
    ///
    /// # Errors
    /// A layer that the format cannot say, NaN or infinity in a factor, a name
    /// that is taken, and what the system refuses. Under [`IfExists::Replace`] a
    /// folder is replaced only when it holds an adapter and nothing else.
    pub fn save_as(&self, out: impl AsRef<Path>, to: OutputFormat, existing: IfExists) -> Result<()> {
        kron_adapter::write(&self.to_adapter()?, to, out, existing).map_err(Error::wrap)
    }
}
