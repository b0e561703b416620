//! `tokenizer.json` and its configuration, from a GGUF's metadata.

use serde_json::{Map, Value as Json, json};

use crate::gguf::{Array, Gguf, Value};
use crate::text::shown;
use crate::{Error, Result};

/// Types of tokens that stand for themselves alone: control tokens, and texts that a model's author added.
const SPECIAL: i64 = 3;
const ADDED: i64 = 4;

/// Words of a Qwen, each digit one of them.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Normalisation and words of a byte-level BPE, as `tokenizer.json` has them; `None` for a name that is unknown.
fn words(pre: &str) -> Option<(Json, Json)> {
    match pre {
        "smollm" => Some((
            Json::Null,
            json!([
                { "type": "Digits", "individual_digits": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ]),
        )),
        "qwen2" => Some((
            json!({ "type": "NFC" }),
            json!([
                { "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
            ]),
        )),
        _ => None,
    }
}

/// Renders `tokenizer.json`: byte-level BPE with the words of SmolLM or of Qwen2 and Qwen3.
///
/// # Errors
/// Fails if the tokenizer is of another kind or contradicts itself.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Json> {
    let kind = |key: &str| Ok::<_, Error>(gguf.value(key)?.as_str().unwrap_or("no text"));
    let (model, pre) = (kind("tokenizer.ggml.model")?, kind("tokenizer.ggml.pre")?);
    let Some((normalizer, words)) = words(pre).filter(|_| model == "gpt2") else {
        return Err(Error::data(format!(
            "{} has the tokenizer {} with the pre-tokenizer {}, but gpt2 with smollm or qwen2 is known",
            gguf.path(),
            shown(model),
            shown(pre)
        )));
    };
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
    let alone = types.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| [SPECIAL, ADDED].contains(kind));
    let alone: Vec<Json> = alone.map(|(id, (kind, token))| added(id, token, *kind == SPECIAL)).collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": alone,
        "normalizer": normalizer,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": words },
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

fn added(id: usize, token: &str, special: bool) -> Json {
    json!({
        "id": id,
        "content": token,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": special,
    })
}
