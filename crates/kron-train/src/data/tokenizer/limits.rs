//! Bound on what a `tokenizer.json` may make of a text.
//!
//! A few steps such as "replace a by aa" multiply a text without limit. Every step has a bound on the bytes that it
//! makes, and a text that the steps together may make too long is refused before it is encoded.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// Largest text that is encoded at once, in bytes.
pub const MAX_TEXT: usize = 1 << 19;
/// Largest number of bytes that the steps may make of a text; a token takes at least one of them.
const MAX_GROWN: f64 = (1u32 << 24) as f64;
/// Largest number of steps of the normalizer, and of the pre-tokenizer.
const MAX_STEPS: usize = 32;
/// Longest token that stands for an unknown word, and longest prefix or suffix of a word's pieces, in bytes.
const MAX_AFFIX: usize = 256;
/// Longest word that WordPiece cuts, in characters; the time is cubic in it.
const MAX_WORD: u64 = 256;

/// Parts of a `tokenizer.json` that decide how long a text may get.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<u64>,
}

/// Bound of one step: `len` bytes become at most `times * len + plus`.
#[derive(Clone, Copy, Debug)]
struct Growth {
    times: f64,
    plus: f64,
    /// `true` if the bound for the pieces of a text is at most that of the text.
    by_character: bool,
}

impl Growth {
    /// Replaces characters one by one.
    const fn times(times: f64) -> Self {
        Self { times, plus: 0.0, by_character: true }
    }

    /// Also puts `len` bytes at the beginning of every piece of the text.
    fn and_prefix(self, len: usize) -> Self {
        let len = len as f64;
        Self { times: self.times * (1.0 + len), plus: self.times * len, by_character: false }
    }

    fn of(self, len: f64) -> f64 {
        self.times.mul_add(len, self.plus)
    }
}

/// Bounds of a tokenizer's steps.
#[derive(Debug)]
pub struct Limits {
    normalizer: Vec<Growth>,
    pre_tokenizer: Vec<Growth>,
}

impl Limits {
    /// Reads the steps of a `tokenizer.json`, before anything is built from it.
    ///
    /// # Errors
    /// The text is no tokenizer, or has too many steps or an unknown one; one sentence without the file's name.
    pub fn read(json: &[u8]) -> Result<Self, String> {
        let parts: Parts = serde_json::from_slice(json).map_err(|e| format!("is not a tokenizer: {e}"))?;
        let normalizer = steps(parts.normalizer.as_ref(), "normalizer", "normalizers", normalizing)?;
        let pre_tokenizer =
            steps(parts.pre_tokenizer.as_ref(), "pre_tokenizer", "pretokenizers", pre_tokenizing)?;
        let Model {
            r#type,
            unk_token,
            continuing_subword_prefix,
            end_of_word_suffix,
            max_input_chars_per_word,
        } = parts.model;
        // The library cuts the prefix off every merged piece without looking.
        let is_word_piece = r#type.as_deref() == Some("WordPiece") || max_input_chars_per_word.is_some();
        if !is_word_piece && continuing_subword_prefix.as_deref().is_some_and(|prefix| !prefix.is_empty()) {
            return Err(
                "has a continuing_subword_prefix, but only a model of the type WordPiece has one here".into(),
            );
        }
        for (name, text) in [
            ("unk_token", unk_token),
            ("continuing_subword_prefix", continuing_subword_prefix),
            ("end_of_word_suffix", end_of_word_suffix),
        ] {
            if let Some(len) = text.map(|text| text.len()).filter(|len| *len > MAX_AFFIX) {
                return Err(format!("has a model.{name} of {len} bytes, but it has at most {MAX_AFFIX}"));
            }
        }
        if let Some(n) = max_input_chars_per_word.filter(|n| *n > MAX_WORD) {
            return Err(format!("has model.max_input_chars_per_word = {n}, but it is at most {MAX_WORD}"));
        }
        if let Some(last) = &parts.post_processor {
            if repeats(last) > 1 {
                return Err("has a post_processor that repeats a text, but a text occurs once".into());
            }
            check_special(last)?;
        }
        let limits = Self { normalizer, pre_tokenizer };
        // The library normalizes the added tokens when it reads them.
        let added = parts.added_tokens.iter().map(|token| token.content.len()).sum();
        limits.refuse_above(limits.after(added as f64, 0), added, "its added tokens")?;
        Ok(limits)
    }

    /// Fails if a text of at most [`MAX_TEXT`] bytes may become too long.
    ///
    /// # Errors
    /// One sentence about the text.
    pub fn check(&self, text: &str, normalizer: Option<&NormalizerWrapper>) -> Result<(), String> {
        let len = text.len();
        if self.after(len as f64, 0) <= MAX_GROWN {
            return Ok(());
        }
        // Measure the steps that act on single characters, most of which make little of most texts.
        let mut measured = NormalizedString::from(text);
        let mut done = 0;
        for (step, growth) in flat(normalizer).into_iter().zip(&self.normalizer) {
            if !growth.by_character {
                break;
            }
            self.refuse_above(growth.of(measured.get().len() as f64), len, "a text")?;
            step.normalize(&mut measured).map_err(|e| format!("the normalizer refused a text: {e}"))?;
            done += 1;
        }
        self.refuse_above(self.after(measured.get().len() as f64, done), len, "a text")
    }

    /// Returns the bound after all steps from the normalizer's step `from` on.
    fn after(&self, len: f64, from: usize) -> f64 {
        self.normalizer[from..].iter().chain(&self.pre_tokenizer).fold(len, |len, step| step.of(len))
    }

    fn refuse_above(&self, grown: f64, len: usize, what: &str) -> Result<(), String> {
        match grown <= MAX_GROWN {
            true => Ok(()),
            false => Err(format!(
                "the tokenizer may make {grown:.1e} bytes of {what} of {len}, but at most {MAX_GROWN:.1e} may become \
                 of it"
            )),
        }
    }
}

/// Lists the normalizers that a sequence holds.
fn flat(normalizer: Option<&NormalizerWrapper>) -> Vec<&NormalizerWrapper> {
    match normalizer {
        Some(NormalizerWrapper::Sequence(all)) => {
            all.as_ref().iter().flat_map(|one| flat(Some(one))).collect()
        }
        other => other.into_iter().collect(),
    }
}

/// Bounds the steps of a normalizer or pre-tokenizer, in order; `list` is the key of a sequence's steps.
fn steps(
    value: Option<&Value>,
    part: &str,
    list: &str,
    bound: fn(&str, &Value) -> Result<Option<Growth>, String>,
) -> Result<Vec<Growth>, String> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let kind = value["type"].as_str().unwrap_or_default();
    let all = match (kind, value[list].as_array()) {
        ("Sequence", Some(all)) => {
            let all = all.iter().map(|step| steps(Some(step), part, list, bound));
            all.collect::<Result<Vec<_>, _>>()?.concat()
        }
        _ => match bound(kind, value)? {
            Some(growth) => vec![growth],
            None => return Err(format!("has a {part} of the type {kind:?}, which is not known here")),
        },
    };
    match all.len() {
        0..=MAX_STEPS => Ok(all),
        n => Err(format!("has a {part} of {n} steps, but it has at most {MAX_STEPS}")),
    }
}

/// Bounds a normalizer; `None` for an unknown one. The factors of Unicode's forms are those of UTF-8 text.
fn normalizing(kind: &str, value: &Value) -> Result<Option<Growth>, String> {
    let len = |key: &str| value[key].as_str().map_or(0, str::len);
    Ok(Some(match kind {
        "NFC" | "NFD" | "Lowercase" => Growth::times(3.0),
        "NFKC" | "NFKD" => Growth::times(11.0),
        "Strip" | "StripAccents" | "Nmt" => Growth::times(1.0),
        "ByteLevel" => Growth::times(2.0),
        // Spaces around Chinese characters, decomposition, lower case.
        "Bert" | "BertNormalizer" => Growth::times(2.0 * 3.0 * 1.5),
        "Prepend" => Growth::times(1.0).and_prefix(len("prepend")),
        "Replace" => match value["pattern"]["String"].as_str() {
            Some(pattern) if !pattern.is_empty() => {
                Growth::times((len("content") as f64 / pattern.len() as f64).max(1.0))
            }
            // A pattern may match between any two bytes.
            _ => Growth::times(1.0).and_prefix(len("content")),
        },
        "Precompiled" => Growth::times(longest_replacement(value)?),
        _ => return Ok(None),
    }))
}

/// Bounds a pre-tokenizer; `None` for an unknown one.
fn pre_tokenizing(kind: &str, value: &Value) -> Result<Option<Growth>, String> {
    Ok(Some(match kind {
        "BertPreTokenizer" | "Delimiter" | "CharDelimiterSplit" | "Whitespace" | "WhitespaceSplit"
        | "Split" | "Punctuation" | "Digits" | "UnicodeScripts" => Growth::times(1.0),
        "FixedLength" if value["length"].as_u64() == Some(0) => {
            return Err("has a pre_tokenizer with length = 0, but a piece has at least one character".into());
        }
        "FixedLength" => Growth::times(1.0),
        "ByteLevel" => Growth::times(2.0).and_prefix(1),
        "Metaspace" => Growth::times(4.0).and_prefix(1),
        _ => return Ok(None),
    }))
}

/// Returns the length of the longest text that a precompiled map has for a character, in bytes.
///
/// The map is the length of a trie (u32), the trie, and the texts, each with a zero byte at its end.
fn longest_replacement(value: &Value) -> Result<f64, String> {
    let broken = "has a precompiled_charsmap that is not a map of characters";
    let text = value["precompiled_charsmap"].as_str().ok_or(broken)?;
    let bytes = base64::decode(text).map_err(|_| broken)?;
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or(broken)?;
    let texts = rest.get(u32::from_le_bytes(*len) as usize..).ok_or(broken)?;
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    Ok((longest as f64).max(1.0))
}

/// Counts how often a post-processor puts in the text: the product over its templates.
fn repeats(value: &Value) -> usize {
    let own = value["single"]
        .as_array()
        .map_or(1, |pieces| pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count());
    let inner = value["processors"]
        .as_array()
        .map_or(1, |all| all.iter().map(repeats).fold(1usize, usize::saturating_mul));
    own.saturating_mul(inner)
}

/// Fails if a template has a special token without ids, which the library takes for granted.
fn check_special(value: &Value) -> Result<(), String> {
    let templates = [&value["single"], &value["pair"]].into_iter().filter_map(Value::as_array).flatten();
    for id in templates.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if value["special_tokens"].get(id).is_none() {
            return Err(format!("has a post_processor with {id:?}, which is not one of its special_tokens"));
        }
    }
    value["processors"].as_array().into_iter().flatten().try_for_each(check_special)
}
