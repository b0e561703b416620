//! Reading of adapters in all supported formats.

use std::path::Path;

use candle_core::Result;
use kron_adapter::Adapter;

use crate::error::of_adapter;

/// Reads an adapter for [`Inject::trained`](crate::Inject::trained): our file, a PEFT folder with LoRA, rsLoRA or
/// LoKr, or a LyCORIS file.
///
/// PEFT names a module by its path in the model after `base_model.model.`; the model has to make that layer under the
/// same prefix. A LyCORIS file has underscores instead of dots, which
/// [`kron_adapter::resolve::resolve_module_names`] undoes. [`kron_adapter::read`] also reports rounded values.
///
/// # Errors
/// The file or folder is damaged, has an unknown format, or cannot be expressed as ΔW = s·A ⊗ (B·C). Also refused is
/// `fan_in_fan_out`, which an [`Adapter`] cannot represent and saving would lose.
///
/// ```
/// # fn main() -> candle_core::Result<()> {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/model_llama/lokr");
/// let adapter = kron_candle::load(path)?; // a PEFT folder
/// assert!(adapter.layer("model.layers.0.self_attn.q_proj").is_some());
/// let inject = kron_candle::Inject::trained(adapter);
/// # let _ = inject;
/// # Ok(()) }
/// ```
pub fn load(path: impl AsRef<Path>) -> Result<Adapter> {
    let loaded = kron_adapter::read(path).map_err(of_adapter)?;
    loaded.check_writable().map_err(of_adapter)?;
    Ok(loaded.adapter)
}
