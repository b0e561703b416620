//! Sizes of a model: those that decide names, shapes and the order of rows.

use std::path::Path;

use serde_json::Value as Json;

use super::architecture::Architecture;
use crate::gguf::Gguf;
use crate::io;
use crate::model_files::MAX_CONFIG_BYTES;
use crate::text::{json_fault, name, shown};
use crate::{Error, Result};

/// Largest size; every known model is far below it, and products of two of them do not overflow.
const MAX: usize = 1 << 24;
/// Most blocks of a configuration, which has no tensors to count; every known model is far below it.
const MAX_BLOCKS: usize = 1 << 12;

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub architecture: Architecture,
    pub vocabulary: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Rows of a head.
    pub head: usize,
}

impl Sizes {
    /// Reads and checks the metadata.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let kind = gguf.value("general.architecture")?.as_str().unwrap_or("no text");
        let Some(architecture) = Architecture::of(kind) else {
            return Err(Error::data(format!(
                "{} has the architecture {}, but {} are those that are known",
                gguf.path(),
                name(kind),
                Architecture::known()
            )));
        };
        let size = |key: &str| size(gguf, architecture, key);
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let optional = |key: &str| match gguf.metadata().contains_key(&key_of(architecture, key)) {
            true => size(key).map(Some),
            false => Ok(None),
        };
        let head = optional("attention.key_length")?.unwrap_or(hidden / heads);
        let tokens = gguf.value("tokenizer.ggml.tokens")?.as_texts();
        let sizes = Self {
            architecture,
            vocabulary: tokens.map_or(0, <[String]>::len),
            hidden,
            intermediate: size("feed_forward_length")?,
            blocks: size("block_count")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
            head,
        };
        sizes.check(gguf.path(), optional("rope.dimension_count")?.unwrap_or(head))
    }

    /// Reads and checks a `config.json`; returns the sizes, and true if the output head is the embedding.
    pub fn of_config(path: &Path) -> Result<(Self, bool)> {
        let bytes = io::read(path, MAX_CONFIG_BYTES)?;
        let path = path.display();
        let config: Json = serde_json::from_slice(&bytes)
            .map_err(|e| Error::data(format!("{path} is not JSON: {}", json_fault(&bytes, &e))))?;
        let kind = config["model_type"].as_str().unwrap_or("no text");
        let Some(architecture) = Architecture::of_model_type(kind) else {
            return Err(Error::data(format!(
                "{path}: model_type is {}, but {} and mistral are known",
                shown(kind),
                Architecture::known()
            )));
        };
        let optional = |key: &str, max: usize| match &config[key] {
            Json::Null => Ok(None),
            value => match value.as_u64().filter(|size| (1..=max as u64).contains(size)) {
                Some(size) => Ok(Some(size as usize)),
                None => Err(Error::data(format!("{path}: {key} is not a whole number from 1 to {max}"))),
            },
        };
        let required = |key: &str, max: usize| {
            optional(key, max)?.ok_or_else(|| Error::data(format!("{path} lacks the field {key}")))
        };
        let (hidden, heads) = (required("hidden_size", MAX)?, required("num_attention_heads", MAX)?);
        let head = optional("head_dim", MAX)?.or(architecture.default_head()).unwrap_or(hidden / heads);
        let sizes = Self {
            architecture,
            vocabulary: required("vocab_size", MAX)?,
            hidden,
            intermediate: required("intermediate_size", MAX)?,
            blocks: required("num_hidden_layers", MAX_BLOCKS)?,
            heads,
            kv_heads: optional("num_key_value_heads", MAX)?.unwrap_or(heads),
            head,
        };
        let tied = match &config["tie_word_embeddings"] {
            Json::Null => false,
            Json::Bool(tied) => *tied,
            _ => return Err(Error::data(format!("{path}: tie_word_embeddings is not a boolean"))),
        };
        Ok((sizes.check(path, head)?, tied))
    }

    /// Checks heads of which `rotated` rows are rotated.
    fn check(self, path: impl std::fmt::Display, rotated: usize) -> Result<Self> {
        let Self { heads, kv_heads, head, .. } = self;
        if head == 0 || !head.is_multiple_of(2) || rotated != head || !heads.is_multiple_of(kv_heads) {
            return Err(Error::data(format!(
                "{path}: {heads} heads of {head} rows, {rotated} of them rotated, and {kv_heads} key heads are no LLaMA's"
            )));
        }
        Ok(self)
    }
}

/// Returns the key of an architecture's setting.
pub(super) fn key_of(architecture: Architecture, key: &str) -> String {
    format!("{}.{key}", architecture.name())
}

/// Returns a size of the architecture.
pub(super) fn size(gguf: &Gguf, architecture: Architecture, key: &str) -> Result<usize> {
    let key = key_of(architecture, key);
    gguf.value(&key)?
        .as_usize()
        .filter(|size| (1..=MAX).contains(size))
        .ok_or_else(|| Error::data(format!("{}: {key} is not a whole number from 1 to {MAX}", gguf.path())))
}
