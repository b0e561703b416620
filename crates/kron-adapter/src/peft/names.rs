//! Names in a PEFT folder.

use std::path::Path;

pub(crate) use crate::tensor_names::PREFIX;

/// File name of the folder's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// File name of the folder's tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Returns the folder that is read at `path`: `path` itself, or the folder of
/// weights that lie beside a configuration.
pub fn folder(path: &Path) -> Option<&Path> {
    if path.is_dir() {
        return Some(path);
    }
    path.parent().filter(|parent| path.ends_with(WEIGHTS) && parent.join(CONFIG).exists())
}
