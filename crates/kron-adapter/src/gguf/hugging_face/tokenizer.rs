//! `tokenizer.json` and its configuration, from a GGUF's metadata.

use serde_json::{Map, Value as Json, json};

use crate::gguf::{Array, Gguf, Value};
use crate::text::shown;
use crate::{Error, Result};

/// Type of a token that stands for itself alone.
const SPECIAL: i64 = 3;

/// Renders `tokenizer.json`: byte-level BPE whose digits stand alone.
///
/// # Errors
/// Fails if the tokenizer is of another kind or contradicts itself.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Json> {
    let kind = |key: &str| Ok::<_, Error>(gguf.value(key)?.as_str().unwrap_or("no text"));
    let (model, pre) = (kind("tokenizer.ggml.model")?, kind("tokenizer.ggml.pre")?);
    if (model, pre) != ("gpt2", "smollm") {
        return Err(Error::data(format!(
            "{} has the tokenizer {} with the pre-tokenizer {}, but gpt2 with smollm is the one that is known",
            gguf.path(),
            shown(model),
            shown(pre)
        )));
    }
    let tokens = tokens(gguf)?;
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert(token.clone(), id.into()).is_some() {
            return Err(Error::data(format!("{} has token {} twice", gguf.path(), shown(token))));
        }
    }
    let types = match gguf.value("tokenizer.ggml.token_type")? {
        Value::Array(Array::Signed(types)) if types.len() == tokens.len() => types,
        _ => return Err(Error::data(format!("{} does not give each token a type", gguf.path()))),
    };
    let special = types.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| **kind == SPECIAL);
    let special: Vec<Json> = special.map(|(id, (_, token))| added(id, token)).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges(gguf)?,
        },
    }))
}

/// Renders `tokenizer_config.json`.
///
/// # Errors
/// Fails if an id is that of no token.
pub(super) fn config(gguf: &Gguf) -> Result<Json> {
    let tokens = tokens(gguf)?;
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
    });
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        if let Some(id) = gguf.metadata().get(&key) {
            let token = id.as_usize().and_then(|id| tokens.get(id));
            let token = token
                .ok_or_else(|| Error::data(format!("{}: {key} is not the id of a token", gguf.path())))?;
            config[format!("{name}_token")] = token.as_str().into();
        }
    }
    if let Some(template) = gguf.metadata().get("tokenizer.chat_template").and_then(Value::as_str) {
        config["chat_template"] = template.into();
    }
    Ok(config)
}

fn tokens(gguf: &Gguf) -> Result<&[String]> {
    let tokens = gguf.value("tokenizer.ggml.tokens")?.as_texts();
    tokens.ok_or_else(|| Error::data(format!("{}: tokenizer.ggml.tokens are not texts", gguf.path())))
}

fn merges(gguf: &Gguf) -> Result<Vec<[&str; 2]>> {
    let merges = gguf.value("tokenizer.ggml.merges")?.as_texts().unwrap_or_default();
    let pairs = merges.iter().map(|merge| {
        let refused = || Error::data(format!("{}: merge {} is not a pair", gguf.path(), shown(merge)));
        merge.split_once(' ').map(|(a, b)| [a, b]).ok_or_else(refused)
    });
    pairs.collect()
}

fn added(id: usize, token: &str) -> Json {
    json!({
        "id": id,
        "content": token,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": true,
    })
}
