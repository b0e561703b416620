//! Reading an adapter of any known format.

use std::borrow::Cow;
use std::path::Path;

use crate::extras::{Extras, Scope, is_beyond};
use crate::io::Input;
use crate::limits::{Limits, check_file};
use crate::read_options::ReadOptions;
use crate::tensor_names::{Prefix, plain_names};
use crate::{Adapter, Error, Format, Loaded, Result, Tensors, gguf, kron_file, lycoris, peft, text};

/// Name of the file in which diffusers saves the LoRA of a pipeline.
const DIFFUSERS: &str = "pytorch_lora_weights.safetensors";

/// Parts of the names of an adapter's factors, one of which each of them has.
const MARKS: [&str; 3] = ["lora", "lokr", peft::PREFIX];

/// Returns diffusers' file in a folder that has one and no configuration of PEFT, and else the path itself.
pub fn diffusers_file(path: &Path) -> Cow<'_, Path> {
    let file = path.join(DIFFUSERS);
    match path.is_dir() && !path.join(peft::CONFIG).exists() && file.is_file() {
        true => file.into(),
        false => path.into(),
    }
}

/// Reads an adapter file, a PEFT folder by its path or by its weights' path, or a folder with diffusers' file.
///
/// # Errors
/// Fails if the file is damaged or of no known format, or holds what
/// ΔW = s·A ⊗ (B·C) cannot express.
pub fn read(path: impl AsRef<Path>) -> Result<Loaded> {
    read_with(path, &ReadOptions::default())
}

/// Reads as [`read`] does, and of a file with several adapters or parts the chosen one.
///
/// # Errors
/// Fails as [`read`] does, and if the choice matches nothing.
pub fn read_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Loaded> {
    Ok(read_scope(path.as_ref(), options, Scope::Delta)?.0)
}

/// Reads an adapter as [`read_with`] does, and what a merge folds beyond ΔW: magnitudes of DoRA, layers of embeddings,
/// changes of biases and norms. With `skip_unsupported` tensors that no merge can fold are left out and listed.
/// An adapter that changes other tensors alone has no layers.
///
/// # Errors
/// Fails if the file is damaged or of no known format, if the choice matches nothing, and on a tensor that cannot be
/// folded, unless `skip_unsupported` is set.
pub fn read_whole(
    path: impl AsRef<Path>,
    options: &ReadOptions,
    skip_unsupported: bool,
) -> Result<(Loaded, Extras)> {
    read_scope(path.as_ref(), options, Scope::Whole { skip_unsupported })
}

fn read_scope(path: &Path, options: &ReadOptions, scope: Scope) -> Result<(Loaded, Extras)> {
    let path = &*diffusers_file(path);
    if let Some(folder) = peft::folder(path) {
        return peft::read(folder, options, scope);
    }
    if gguf::is_gguf(path) {
        return Ok((options.choose_layers(gguf::read_lora(path)?)?, Extras::default()));
    }
    let mut input = Input::open(path)?;
    check_file(input.path(), input.len())?;
    let (header, layout) = input.layout()?;
    let (path, bytes) = (input.path().to_string(), input.len());
    if layout.metadata.as_ref().is_some_and(|texts| texts.contains_key(Adapter::RESERVED_KEY)) {
        kron_file::check_header(&header).map_err(|e| e.about(&path))?;
        let adapter = kron_file::decode(layout, input.into_file()).map_err(|e| e.about(&path))?;
        let limits = Limits::new(bytes);
        let loaded = options.choose_layers(Loaded::new(path, limits, bytes, Format::Kron, adapter))?;
        return Ok((loaded, Extras::default()));
    }
    // A model may be larger than memory, and its names say that it is one.
    let may_be_factor = |name: &String| MARKS.iter().any(|mark| name.contains(mark));
    let is_merged = |name: &String| scope != Scope::Delta && is_beyond(name);
    if !layout.tensors.offset_keys().iter().any(|name| may_be_factor(name) || is_merged(name)) {
        return Err(no_adapter(&path));
    }
    let (tensors, found) = plain_names(Tensors::load(input, header, layout)?, Prefix::Any, options)?;
    let names = tensors.names();
    // LyCORIS has the same tensor names after the module, but its scale is beside them.
    if let Some(name) = names.iter().find(|name| name.starts_with(peft::PREFIX)) {
        return Err(Error::data(format!(
            "{path}: {} is a tensor of PEFT, whose scale stands in {}: the file needs that beside it, and the name {}",
            text::name(name),
            peft::CONFIG,
            peft::WEIGHTS
        )));
    }
    if names.iter().any(|name| lycoris::is_factor(name) || is_merged(name)) {
        let (loaded, extras) = lycoris::read(&tensors, scope)?;
        return Ok((found.add_to(loaded), extras));
    }
    Err(no_adapter(&path))
}

fn no_adapter(path: &str) -> Error {
    Error::data(format!(
        "{path} is not an adapter: it has neither the metadata {} nor a tensor of a LoKr or LoRA, and a PEFT adapter is a folder with an {}",
        Adapter::RESERVED_KEY,
        peft::CONFIG
    ))
}
