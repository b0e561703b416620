//! Reading an adapter of any known format.

use std::path::Path;

use crate::io::Input;
use crate::limits::{Limits, check_file};
use crate::read_options::ReadOptions;
use crate::tensor_names::{Prefix, plain_names};
use crate::{Adapter, Error, Format, Loaded, Result, Tensors, gguf, kron_file, lycoris, peft, text};

/// Parts of the names of an adapter's factors, one of which each of them has.
const MARKS: [&str; 3] = ["lora", "lokr", peft::PREFIX];

/// Reads an adapter file, or a PEFT folder by its path or by its weights' path.
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
    let path = path.as_ref();
    if let Some(folder) = peft::folder(path) {
        return peft::read(folder, options);
    }
    if gguf::is_gguf(path) {
        return options.choose_layers(gguf::read_lora(path)?);
    }
    let mut input = Input::open(path)?;
    check_file(input.path(), input.len())?;
    let (header, layout) = input.layout()?;
    let (path, bytes) = (input.path().to_string(), input.len());
    if layout.metadata.as_ref().is_some_and(|texts| texts.contains_key(Adapter::RESERVED_KEY)) {
        kron_file::check_header(&header).map_err(|e| e.about(&path))?;
        let adapter = kron_file::decode(layout, input.into_file()).map_err(|e| e.about(&path))?;
        let limits = Limits::new(bytes);
        return options.choose_layers(Loaded::new(path, limits, bytes, Format::Kron, adapter));
    }
    // A model may be larger than memory, and its names say that it is one.
    let may_be_factor = |name: &String| MARKS.iter().any(|mark| name.contains(mark));
    if !layout.tensors.offset_keys().iter().any(may_be_factor) {
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
    if names.iter().any(|name| lycoris::is_factor(name)) {
        return Ok(found.add_to(lycoris::read(&tensors)?));
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
