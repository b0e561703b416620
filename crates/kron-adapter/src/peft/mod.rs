//! PEFT folders (peft 0.21.2): `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Names are `base_model.model.<module>.lokr_*` or `….lora_A.weight`. LoKr has
//! s = alpha / r also where w2 is full; LoRA has alpha / r, rsLoRA alpha / √r.

mod config;
mod lokr;
mod lora;
mod patterns;

use std::collections::BTreeMap;
use std::path::Path;

use crate::{Adapter, Layer};

use crate::{Error, Loaded, Result, Tensors, files};
use config::Config;

pub(crate) use lokr::write as write_lokr;
pub use lora::LoraOptions;
pub(crate) use lora::write as write_lora;

/// The folder's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The folder's tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before a module's name.
pub(crate) const PREFIX: &str = "base_model.model.";
/// The longest configuration that is read.
const MOST_CONFIG: u64 = 16 << 20;

/// The folder that is read at `path`: `path` itself, or where its weights lie beside a configuration.
pub fn folder(path: &Path) -> Option<&Path> {
    if path.is_dir() {
        return Some(path);
    }
    path.parent().filter(|parent| path.ends_with(WEIGHTS) && parent.join(CONFIG).exists())
}

/// Reads a folder.
///
/// # Errors
/// A file that is missing or damaged, another `peft_type`, a field that changes
/// the layer beyond ΔW, and tensors that the configuration contradicts.
pub(crate) fn read(folder: &Path) -> Result<Loaded> {
    let weights = folder.join(WEIGHTS);
    if !weights.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::data(format!(
            "{} holds adapter_model.bin, a pickle that runs code when it is read; save it as safetensors",
            folder.display()
        )));
    }
    let path = folder.join(CONFIG);
    let config = Config::parse(&files::read(&path, MOST_CONFIG)?)
        .map_err(|why| Error::data(format!("{}: {why}", path.display())))?;
    let tensors = Tensors::read(&weights)?;
    match config.kind {
        config::Kind::Lokr => lokr::read(folder, &config, &tensors),
        config::Kind::Lora => lora::read(folder, &config, &tensors),
    }
}

/// The adapter of these layers, with what the configuration says of its model.
fn adapter(folder: &Path, config: &Config, layers: Vec<Layer>) -> Result<Adapter> {
    let refused = |e: Error| Error::data(format!("{}: {e}", folder.display()));
    let metadata: BTreeMap<String, String> = config.about.clone();
    Adapter::new(layers)
        .and_then(|a| a.with_target_modules(config.target_modules.clone()))
        .and_then(|a| a.with_metadata(metadata))
        .map_err(refused)
}
