//! [`Conventions`]: the special tokens and the chat template of a model.

use std::path::Path;

use kron_adapter::gguf::Gguf;
use kron_adapter::model_files::CONFIG;
use serde_json::Value as Json;

use crate::error::{Result, file};
use crate::files;

/// Special tokens and chat template of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conventions {
    /// Ids that end a text, sorted.
    pub ends: Vec<u32>,
    /// Text of the token that begins a text; empty without one.
    pub bos_token: String,
    /// Text of the token that ends a text; empty without one.
    pub eos_token: String,
    /// Layout of a conversation, in the language of Jinja.
    pub chat_template: Option<String>,
}

impl Conventions {
    /// Reads the files beside a `tokenizer.json`, or the metadata of a GGUF file; `id` is that of a token.
    ///
    /// A folder has its chat template in `chat_template.jinja`, else in `tokenizer_config.json`. It lists its end tokens in `generation_config.json`, else in `config.json`, and names one of them in
    /// `tokenizer_config.json`; every one of these files may be missing.
    ///
    /// # Errors
    /// A file is malformed, or an id is out of range.
    pub(super) fn read(tokenizer: &Path, id: impl Fn(&str) -> Option<u32>) -> Result<Self> {
        let (names, mut ends) = match files::is_gguf(tokenizer) {
            true => {
                let gguf = Gguf::open(tokenizer)?;
                let keys = ["eos", "eot", "eom"].map(|name| format!("tokenizer.ggml.{name}_token_id"));
                let values = keys.iter().filter_map(|key| gguf.metadata().get(key));
                let ids = values.map(|value| u32::try_from(value.as_usize()?).ok());
                let ids: Option<Vec<u32>> = ids.collect();
                let ids = ids.ok_or_else(|| file(tokenizer, "has an end token whose id is not an id"))?;
                (gguf.hugging_face()?.tokenizer_config, ids)
            }
            false => (json(&tokenizer.with_file_name("tokenizer_config.json"))?, end_ids(tokenizer)?),
        };
        let text = |name: &str| {
            let value = &names[name];
            // An added token is an object around its text.
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        let (bos_token, eos_token) = (text("bos_token"), text("eos_token"));
        ends.extend(id(&eos_token));
        ends.sort_unstable();
        ends.dedup();
        let beside = tokenizer.with_file_name("chat_template.jinja");
        let chat_template = match !files::is_gguf(tokenizer) && beside.symlink_metadata().is_ok() {
            true => Some(files::text(&beside, files::MAX_SETTINGS)?),
            false => template(&names["chat_template"]).map(str::to_owned),
        };
        Ok(Self { ends, bos_token, eos_token, chat_template })
    }
}

/// Returns the template among the values of `chat_template`: a text, or the one named default of a list.
fn template(value: &Json) -> Option<&str> {
    match value {
        Json::Array(list) => list.iter().find(|one| one["name"] == "default")?["template"].as_str(),
        one => one.as_str(),
    }
}

/// Reads the ids of the end tokens in a folder's configuration.
fn end_ids(tokenizer: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", CONFIG] {
        let path = tokenizer.with_file_name(name);
        let ids = match json(&path)?["eos_token_id"].take() {
            Json::Null => continue,
            Json::Array(ids) => ids,
            id => vec![id],
        };
        let id = |id: &Json| {
            let fits = id.as_u64().and_then(|id| u32::try_from(id).ok());
            fits.ok_or_else(|| {
                file(&path, format!("has an eos_token_id of {id}, but it is an id or a list of ids"))
            })
        };
        return ids.iter().map(id).collect();
    }
    Ok(Vec::new())
}

/// Reads a JSON file; a missing one is null.
fn json(path: &Path) -> Result<Json> {
    if path.symlink_metadata().is_err() {
        return Ok(Json::Null);
    }
    serde_json::from_str(&files::text(path, files::MAX_TOKENIZER)?).map_err(|e| file(path, e))
}
