//! A Hugging Face `config.json`, whose fields are checked when they are read.

use std::path::Path;

use kron_adapter::io;
use kron_adapter::model_files::{CONFIG, MAX_CONFIG_BYTES};
use kron_adapter::text::json_fault;
use serde_json::{Map, Value};

use super::family::Family;
use crate::{Error, Result};

/// Largest size in a configuration.
const MAX: u64 = i32::MAX as u64;

/// A configuration, of a known or an unknown family.
#[derive(Debug)]
pub struct Config {
    path: String,
    /// `None` for an unknown family.
    family: Option<Family>,
    fields: Map<String, Value>,
}

impl Config {
    /// Reads `config.json`, given by its path or by its folder.
    ///
    /// # Errors
    /// The file cannot be read, or is not a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { &path.join(CONFIG) } else { path };
        let name = path.display().to_string();
        let bytes = io::read(path, MAX_CONFIG_BYTES)?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::data(format!("{name} is not JSON: {}", json_fault(&bytes, &e))))?;
        let Value::Object(mut fields) = value else {
            return Err(Error::data(format!("{name} is not a JSON object")));
        };
        // A model with vision keeps its language model's fields in `text_config`.
        if let Some(Value::Object(text)) = fields.get("text_config").cloned() {
            fields.extend(text);
        }
        let family = fields.get("model_type").and_then(Value::as_str).and_then(Family::of);
        Ok(Self { path: name, family, fields })
    }

    /// Returns the family.
    ///
    /// # Errors
    /// The family is unknown.
    pub(super) fn family(&self) -> Result<Family> {
        self.family.ok_or_else(|| {
            self.refused(match self.fields.get("model_type") {
                Some(Value::String(name)) => {
                    format!(
                        "model_type is {name:?}, but the known ones are {}; the model's weights need no family: kron plan MODEL",
                        Family::known()
                    )
                }
                _ => "lacks the field model_type, a string".into(),
            })
        })
    }

    /// Returns true if the output head shares its weight with the input embedding.
    ///
    /// # Errors
    /// `tie_word_embeddings` is not a boolean.
    pub fn tied(&self) -> Result<bool> {
        match self.fields.get("tie_word_embeddings") {
            None | Some(Value::Null) => Ok(self.family.is_some_and(Family::tied_by_default)),
            Some(Value::Bool(tied)) => Ok(*tied),
            Some(other) => Err(Error::data(format!(
                "{}: tie_word_embeddings is {other}, but it is a boolean",
                self.path
            ))),
        }
    }

    /// Returns true if the configuration tells whether the head is tied, or its family's default is known.
    pub fn knows_tied(&self) -> bool {
        self.family.is_some() || self.fields.get("tie_word_embeddings").is_some_and(Value::is_boolean)
    }

    /// Returns true if the module's weight is stored as d_in × d_out, as in GPT-2's `Conv1D`.
    pub fn transposed(&self, module: &str) -> bool {
        let last = module.rsplit('.').next().unwrap_or(module);
        self.family == Some(Family::Gpt2) && ["c_attn", "c_proj", "c_fc", "q_attn"].contains(&last)
    }

    /// Returns an integer of 1 to [`MAX`], or `None` if the field is missing or null.
    ///
    /// # Errors
    /// The field holds another value.
    pub(super) fn optional(&self, field: &str) -> Result<Option<usize>> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n @ 1..=MAX) => Ok(Some(n as usize)),
                _ => Err(Error::data(format!(
                    "{}: {field} is {value}, but it is an integer of 1 to {MAX}",
                    self.path
                ))),
            },
        }
    }

    /// Returns an integer of 1 to [`MAX`].
    ///
    /// # Errors
    /// The field is missing, null, or holds another value.
    pub(super) fn required(&self, field: &str) -> Result<usize> {
        self.optional(field)?.ok_or_else(|| {
            Error::data(format!("{} lacks the field {field}, an integer of 1 to {MAX}", self.path))
        })
    }

    /// Returns a string, or `None` if the field is missing or holds another value.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).and_then(Value::as_str)
    }

    /// Returns the configuration's path, as messages give it.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Returns an error about this configuration.
    pub(super) fn refused(&self, what: impl std::fmt::Display) -> Error {
        Error::data(format!("{}: {what}", self.path))
    }
}
