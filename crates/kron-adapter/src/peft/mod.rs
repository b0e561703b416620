//! PEFT folders (peft 0.21.2): `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Names are `base_model.model.<module>.lokr_*` or `….lora_A.weight`. LoKr has
//! s = alpha / r even if w2 is full; LoRA has alpha / r, rsLoRA alpha / √r.
//! The modules of `modules_to_save` have their parameters' names, `base_model.model.classifier.weight`.

mod config;
mod joined;
mod lokr;
mod lora;
mod names;
mod patterns;
mod plain;
mod saved;

use std::path::Path;

use crate::limits::{Limits, check_file, work};
use crate::matrix::pointwise;
use crate::read_options::ReadOptions;
use crate::tensor_names::{Prefix, plain_names};
use crate::{Error, Loaded, Result, Tensors, io};
use patterns::automaton_limit;

pub(crate) use config::Config;
pub(crate) use lokr::{check_shapes, write as write_lokr};
pub use lora::LoraOptions;
pub(crate) use lora::write as write_lora;
pub(crate) use names::PREFIX;
pub use names::{CONFIG, WEIGHTS, folder};
pub(crate) use saved::left_out;

/// Longest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Reads a folder.
///
/// # Errors
/// Fails on a file that is missing or damaged, on another `peft_type`, on a field
/// that changes the layer beyond ΔW, on tensors that contradict the configuration, and on a choice that matches
/// nothing.
pub(crate) fn read(folder: &Path, options: &ReadOptions) -> Result<Loaded> {
    let weights = folder.join(WEIGHTS);
    if !weights.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::data(format!(
            "{} holds adapter_model.bin, a pickle that runs code when it is read; save it as safetensors",
            folder.display()
        )));
    }
    let path = folder.join(CONFIG);
    let text = io::read(&path, MAX_CONFIG)?;
    let tensors = read_weights(&weights);
    // A fault of the configuration comes first.
    let limit = tensors.as_ref().map_or(automaton_limit(0, 0), pattern_limit);
    let config = Config::parse(&text, limit).map_err(|e| e.about(path.display()))?;
    let (tensors, found) = plain_names(tensors?, Prefix::Peft, options)?;
    let mut limits = Limits::new(tensors.len());
    let saved = &config.modules_to_save;
    let mut split = |part: fn(&str) -> Option<(&str, &str)>| {
        saved::split(&tensors, saved, |name| part(name).is_some(), &mut limits)
    };
    let (factors, trained) = match config.kind {
        config::Kind::Lokr => split(lokr::parts)?,
        config::Kind::Lora => split(lora::parts)?,
    };
    let mut loaded = match config.kind {
        config::Kind::Lokr => lokr::read(folder, &config, &tensors, &factors, limits)?,
        config::Kind::Lora => lora::read(folder, &config, &tensors, &factors, limits)?,
    };
    loaded.notes.extend(config.notes(&tensors.names()));
    loaded.notes.extend(pointwise(&tensors, &factors));
    loaded.notes.extend(saved::missing(saved, &trained));
    loaded.adapter = saved::with_tensors(loaded.adapter, trained, &tensors)?;
    Ok(found.add_to(loaded))
}

fn read_weights(path: &Path) -> Result<Tensors> {
    let mut input = io::Input::open(path)?;
    check_file(input.path(), input.len())?;
    let (header, layout) = input.layout()?;
    Tensors::load(input, header, layout)
}

/// Returns the bytes that the patterns may take, so that all names are matched within the file's work.
pub(crate) fn pattern_limit(tensors: &Tensors) -> usize {
    let names = tensors.names().iter().map(|name| name.len() as u64).sum();
    automaton_limit(names, work(tensors.len()))
}
