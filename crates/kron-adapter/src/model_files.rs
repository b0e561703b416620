//! Files of a model's Hugging Face folder: their names, and the index of shards.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::io;
use crate::text::{json_fault, shown};
use crate::{Error, Result};

/// Name of a model's configuration.
pub const CONFIG: &str = "config.json";
/// Name of the file that maps tensors to shards.
pub const INDEX: &str = "model.safetensors.index.json";
/// Name of the file of a model without shards.
pub const SINGLE: &str = "model.safetensors";
/// Largest configuration that is read, in bytes; real ones are far smaller.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest index that is read, in bytes; enough for some million tensors.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// Index of a model's shards.
#[derive(Clone, Debug)]
pub struct ShardIndex {
    /// Bytes of the file.
    pub bytes: Vec<u8>,
    /// Shard of each tensor, a plain name in the folder.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the index of a model's folder; returns `None` for a folder without one.
    ///
    /// A shard is a plain name, so that an index cannot lead out of the folder.
    /// The file of that name may be a symbolic link, as in Hugging Face's cache.
    ///
    /// # Errors
    /// Fails if the index cannot be read, is malformed, names no tensor, or
    /// names a shard by anything but a plain name that ends in `.safetensors`.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let path = folder.join(INDEX);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let bytes = io::read(&path, MAX_INDEX_BYTES)?;
        let path = path.display();
        let Index { weight_map } = serde_json::from_slice(&bytes).map_err(|e| {
            Error::data(format!("{path} is not an index of shards: {}", json_fault(&bytes, &e)))
        })?;
        if weight_map.is_empty() {
            return Err(Error::data(format!("{path} names no tensor")));
        }
        if let Some(name) = weight_map.values().find(|name| !is_plain(name)) {
            return Err(Error::data(format!(
                "{path} names the shard {}, but a shard is a plain name that ends in .safetensors",
                shown(name)
            )));
        }
        Ok(Some(Self { bytes, weight_map }))
    }
}

fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_a_plain_name_in_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(ShardIndex::read(folder.path()).expect("no index").is_none());
        let read = |name: &str| {
            let index = serde_json::json!({ "weight_map": { "a": "model-1.safetensors", "b": name } });
            std::fs::write(folder.path().join(INDEX), index.to_string()).expect("a file");
            ShardIndex::read(folder.path())
        };
        for name in ["model-2.safetensors", "A_b.c-1.safetensors"] {
            let index = read(name).expect("a plain name").expect("an index");
            assert_eq!(index.weight_map["b"], name);
        }
        for name in [
            "../m.safetensors",
            "/dev/zero",
            "/m.safetensors",
            "a/m.safetensors",
            ".m.safetensors",
            "a\\m.safetensors",
            "m.bin",
            "m\n.safetensors",
            "",
        ] {
            let message = read(name).expect_err("no plain name").to_string();
            assert!(message.contains("but a shard is a plain name"), "{name:?}: {message}");
        }
        for text in ["", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 1}}"] {
            std::fs::write(folder.path().join(INDEX), text).expect("a file");
            ShardIndex::read(folder.path()).expect_err(text);
        }
    }
}
