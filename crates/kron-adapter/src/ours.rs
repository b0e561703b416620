//! The project's own file; the core reads and writes it.

use crate::Adapter;

use crate::{Error, Format, Loaded, Result, Tensors};

pub(super) fn read(tensors: &Tensors) -> Result<Loaded> {
    let path = tensors.path();
    let adapter = Adapter::from_bytes(tensors.bytes()).map_err(|e| {
        Error::data(format!("{path} is no adapter: {}", e.to_string().trim_start_matches("bytes: ")))
    })?;
    Ok(Loaded { path: path.into(), format: Format::Kron, adapter, fan_in_fan_out: false, notes: Vec::new() })
}
