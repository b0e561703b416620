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
mod tokens;

use std::path::Path;

use crate::extras::{Convention, Extras, Scope, Taken, take};
use crate::limits::{Limits, check_file, work};
use crate::matrix::pointwise;
use crate::read_options::ReadOptions;
use crate::tensor_names::{Prefix, plain_names};
use crate::{Adapter, Error, Format, Loaded, Result, Tensors, io, text};
use patterns::automaton_limit;

pub(crate) use config::Config;
pub(crate) use joined::joined;
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
pub(crate) fn read(folder: &Path, options: &ReadOptions, scope: Scope) -> Result<(Loaded, Extras)> {
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
    let config = Config::parse(&text, limit, scope).map_err(|e| e.about(path.display()))?;
    let (tensors, found) = plain_names(tensors?, Prefix::Peft, options)?;
    let mut limits = Limits::new(tensors.len());
    let parts = match config.kind {
        config::Kind::Lokr => lokr::parts,
        config::Kind::Lora => lora::parts,
    };
    let (names, trained) =
        saved::split(&tensors, &config.wanted(), |name| parts(name).is_some(), &mut limits)?;
    let convention = Convention {
        prefix: PREFIX,
        module: &|name| Some(parts(name)?.0),
        scaling: Some(&|module| config.scaling(module)),
        target_parameters: &config.target_parameters,
        otherwise: saved::UNSAVED,
    };
    let Taken { left, layers, extras } = take(&tensors, names, &convention, scope)?;
    let is_beyond = scope != Scope::Delta && (!extras.is_empty() || !trained.is_empty());
    let mut loaded = match config.kind {
        _ if left.is_empty() && is_beyond => without_factors(folder, &config, &tensors, limits),
        config::Kind::Lokr => lokr::read(folder, &config, &tensors, &left, limits)?,
        config::Kind::Lora => lora::read(folder, &config, &tensors, &left, limits)?,
    };
    if !layers.is_empty() {
        loaded.adapter = loaded.adapter.with_layers([loaded.adapter.layers(), &layers].concat())?;
    }
    check_magnitudes(&config, &loaded.adapter, &extras).map_err(|e| e.about(folder.display()))?;
    let names = tensors.names();
    loaded.notes.extend(config.notes(Some(&names[..]).filter(|_| found.is_whole())));
    loaded.notes.extend(pointwise(&tensors, &left));
    loaded.notes.extend(saved::missing(&config.modules_to_save, &trained));
    loaded.adapter = saved::with_tensors(loaded.adapter, trained, &tensors)?;
    Ok((found.add_to(loaded), extras))
}

/// Returns a folder's adapter without layers.
fn without_factors(folder: &Path, config: &Config, tensors: &Tensors, limits: Limits) -> Loaded {
    let format = if config.kind == config::Kind::Lora { Format::PeftLora } else { Format::PeftLokr };
    let (path, adapter) = (folder.display().to_string(), Adapter::without_layers());
    let loaded = Loaded::new(path, limits, tensors.len(), format, adapter);
    Loaded { fan_in_fan_out: config.fan_in_fan_out, ..loaded }
}

/// Fails unless every layer has a magnitude where the configuration has DoRA, and none where it does not.
fn check_magnitudes(config: &Config, adapter: &Adapter, extras: &Extras) -> Result<()> {
    if !config.dora {
        return match extras.magnitudes.keys().next() {
            None => Ok(()),
            Some(module) => Err(Error::data(format!(
                "{} has a lora_magnitude_vector, but {CONFIG} does not have use_dora",
                text::name(module)
            ))),
        };
    }
    let without = adapter.layers().iter().find(|layer| !extras.magnitudes.contains_key(layer.module()));
    match without {
        Some(layer) => Err(Error::data(format!(
            "{CONFIG} has use_dora, but {} has no lora_magnitude_vector",
            layer.module()
        ))),
        None => Ok(()),
    }
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
