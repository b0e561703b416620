//! Input files: regular files of a limited size, read whole.

use std::path::Path;

use kron_adapter::io;
use serde::de::DeserializeOwned;

use crate::error::{Result, file};

/// Largest file of settings or of a grid, in bytes.
pub const MAX_SETTINGS: u64 = 1 << 24;
/// Largest file of examples, in bytes.
pub const MAX_DATA: u64 = 1 << 32;
/// Largest file of weights, in bytes.
pub const MAX_WEIGHTS: u64 = 1 << 38;
/// Largest tokenizer, in bytes; real ones have up to 40 MB.
pub const MAX_TOKENIZER: u64 = 1 << 26;
/// Largest CSV file of a run or study, in bytes.
pub const MAX_LOG: u64 = 1 << 32;

/// Returns true for the name of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Reads a text.
///
/// # Errors
/// The path names no regular file of at most `limit` bytes, or the text is not UTF-8.
pub fn text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(io::read(path, limit)?)
        .map_err(|e| file(path, format!("is not a text: byte {} is not UTF-8", e.utf8_error().valid_up_to())))
}

/// Reads a TOML file.
///
/// # Errors
/// As [`text`], or the file is not TOML of this form; the message names the line.
pub fn toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = text(path, MAX_SETTINGS)?;
    toml::from_str(&text).map_err(|e| {
        let message = e.message().replace('\n', "; ");
        let before = e.span().and_then(|span| text.get(..span.start));
        match before.map(|before| before.matches('\n').count() + 1) {
            Some(line) => file(path, format!("line {line}: {message}")),
            None => file(path, message),
        }
    })
}
