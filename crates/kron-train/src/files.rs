//! Input files: regular files of a limited size, read whole.

use std::path::Path;

use kron_adapter::io::{self, OutputLock};
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::error::{Error, Result, file};

/// Largest file of settings or of a grid, in bytes.
const MAX_SETTINGS: u64 = 1 << 24;
/// Largest file of examples, in bytes.
pub const MAX_DATA: u64 = 1 << 32;
/// Largest file of weights, in bytes.
pub const MAX_WEIGHTS: u64 = 1 << 38;
/// Largest tokenizer, in bytes; real ones have up to 40 MB.
pub const MAX_TOKENIZER: u64 = 1 << 26;
/// Largest CSV file of a run or study, in bytes.
pub const MAX_LOG: u64 = 1 << 32;

/// Creates an output folder, and locks it for as long as the result is held.
///
/// # Errors
/// An input lies in the folder, another process writes there, or the system refuses.
pub fn claim(folder: &Path, config: &Config) -> Result<OutputLock> {
    let data = &config.data;
    let optional = [&config.tokenizer, &data.validation, &data.test];
    for input in [&config.model, &data.train].into_iter().chain(optional.into_iter().flatten()) {
        io::check_not_overwriting(input, folder)?;
    }
    std::fs::create_dir_all(folder).map_err(|e| file(folder, e))?;
    Ok(OutputLock::folder(folder)?)
}

/// Lists the names in a folder, sorted, without locks and the temporary files that killed processes leave.
///
/// # Errors
/// The folder cannot be read.
pub fn contents(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| file(folder, e))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| file(folder, e))?.file_name();
        if !io::is_temporary(&name) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes the error of an output folder that holds something else, with its first names.
pub fn taken(folder: &Path, names: &[String], rule: &str) -> Error {
    let shown: Vec<String> = names.iter().take(3).map(|name| format!("{name:?}")).collect();
    let more = if names.len() > shown.len() { " and more" } else { "" };
    file(folder, format!("holds {}{more}, but {rule}", shown.join(", ")))
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
