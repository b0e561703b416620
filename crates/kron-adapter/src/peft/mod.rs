//! PEFT folders (peft 0.21.2): `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Names are `base_model.model.<module>.lokr_*` or `….lora_A.weight`. LoKr has
//! s = alpha / r even if w2 is full; LoRA has alpha / r, rsLoRA alpha / √r.

mod config;
mod lokr;
mod lora;
mod names;
mod patterns;

use std::path::Path;

use crate::{Error, Loaded, Result, Tensors, io};
use config::Config;

pub(crate) use lokr::write as write_lokr;
pub use lora::LoraOptions;
pub(crate) use lora::write as write_lora;
pub(crate) use names::PREFIX;
pub use names::{CONFIG, WEIGHTS, folder};

/// Longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Reads a folder.
///
/// # Errors
/// Fails on a file that is missing or damaged, on another `peft_type`, on a field
/// that changes the layer beyond ΔW, and on tensors that contradict the configuration.
pub(crate) fn read(folder: &Path) -> Result<Loaded> {
    let weights = folder.join(WEIGHTS);
    if !weights.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::data(format!(
            "{} holds adapter_model.bin, a pickle that runs code when it is read; save it as safetensors",
            folder.display()
        )));
    }
    let path = folder.join(CONFIG);
    let config = Config::parse(&io::read(&path, MAX_CONFIG)?).map_err(|e| e.about(path.display()))?;
    let tensors = Tensors::read(&weights)?;
    match config.kind {
        config::Kind::Lokr => lokr::read(folder, &config, &tensors),
        config::Kind::Lora => lora::read(folder, &config, &tensors),
    }
}
