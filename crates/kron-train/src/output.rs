//! Output folders: one writer at a time, apart from the inputs, with nothing in them but the writer's own files.

use std::path::Path;

use kron_adapter::io::{self, OutputLock};

use crate::config::Config;
use crate::error::{Error, Result, file};

/// Creates an output folder, and locks it for as long as the result is held.
///
/// # Errors
/// An input lies in the folder, another process writes there, or the system refuses.
pub fn claim(folder: &Path, config: &Config) -> Result<OutputLock> {
    create(folder, config)?;
    Ok(OutputLock::folder(folder)?)
}

/// Creates an output folder.
///
/// # Errors
/// An input lies in the folder, or the system refuses.
pub fn create(folder: &Path, config: &Config) -> Result<()> {
    let data = &config.data;
    let optional = [&config.tokenizer, &data.validation, &data.test];
    for input in [&config.model, &data.train].into_iter().chain(optional.into_iter().flatten()) {
        io::check_not_overwriting(input, folder)?;
    }
    std::fs::create_dir_all(folder).map_err(|e| file(folder, e))
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
