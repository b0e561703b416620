//! A Hugging Face `config.json`: the linear layers of a model, without its weights.

mod families;

use std::path::Path;

use kron_adapter::plan::Model;
use serde_json::{Map, Value};

use crate::{Error, Result, files};

use families::Family;

/// The file's name in a model's folder.
pub const CONFIG: &str = "config.json";
/// No configuration comes near this many bytes.
const LIMIT: u64 = 1 << 20;

/// A configuration, of a known family or not.
#[derive(Debug)]
pub struct Config {
    path: String,
    /// `None` for an unknown one.
    family: Option<Family>,
    fields: Map<String, Value>,
}

/// A model's linear layers, with what a reader must know about them.
#[derive(Debug)]
pub struct Layers {
    /// The layers, as the planner takes them.
    pub model: Model,
    /// What is not a plain linear layer, and why: one sentence each.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads `config.json`, or the one of a folder.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { &path.join(CONFIG) } else { path };
        let name = path.display().to_string();
        let value: Value = serde_json::from_slice(&files::read(path, LIMIT)?)
            .map_err(|e| Error::data(format!("{name} is not JSON: {e}")))?;
        let Value::Object(mut fields) = value else {
            return Err(Error::data(format!("{name} is not a JSON object")));
        };
        // A model that also sees images keeps its language model's numbers apart.
        if let Some(Value::Object(text)) = fields.get("text_config").cloned() {
            fields.extend(text);
        }
        let family = fields.get("model_type").and_then(Value::as_str).and_then(Family::of);
        Ok(Self { path: name, family, fields })
    }

    /// The linear layers.
    ///
    /// # Errors
    /// An unknown family; a field that is missing, not a positive integer, or out of range.
    pub fn layers(&self) -> Result<Layers> {
        if let Some(family) = self.family {
            return families::layers(self, family);
        }
        Err(self.refused(match self.fields.get("model_type") {
            Some(Value::String(name)) => {
                format!("model_type is {name:?}, but the known ones are {}", Family::known())
            }
            _ => "lacks the field model_type, a string".into(),
        }))
    }

    /// Whether the output head is the input embedding.
    ///
    /// # Errors
    /// A `tie_word_embeddings` that is no boolean.
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

    /// Whether the module's weight lies as d_in × d_out, as GPT-2's `Conv1D` keeps it.
    pub fn transposed(&self, module: &str) -> bool {
        let last = module.rsplit('.').next().unwrap_or(module);
        self.family == Some(Family::Gpt2) && ["c_attn", "c_proj", "c_fc", "q_attn"].contains(&last)
    }

    fn optional(&self, field: &str) -> Result<Option<usize>> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0) {
                Some(n) => Ok(Some(n)),
                None => Err(Error::data(format!(
                    "{}: {field} is {value}, but it is a positive integer",
                    self.path
                ))),
            },
        }
    }

    fn required(&self, field: &str) -> Result<usize> {
        self.optional(field)?
            .ok_or_else(|| Error::data(format!("{} lacks the field {field}, a positive integer", self.path)))
    }

    fn refused(&self, what: impl std::fmt::Display) -> Error {
        Error::data(format!("{}: {what}", self.path))
    }
}
