//! Printing of a command's result on the standard output.

use std::io::{ErrorKind, Write};

use kron_adapter::text::{printable, printable_json};
use serde::Serialize;

use crate::{Error, Result};

/// Form in which a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextOrJson {
    /// Text with tables, for people.
    Text,
    /// One JSON value; a number that is not finite becomes `null`.
    Json,
}

impl TextOrJson {
    /// Prints `value` as JSON, or as the text that `text` makes from it.
    ///
    /// # Errors
    /// Writing to the standard output failed; a closed pipe is not an error.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let text = match self {
            // Names of files and texts from files may hold a terminal's commands.
            TextOrJson::Text => printable(&text(value)).into_owned(),
            TextOrJson::Json => {
                let json = serde_json::to_string_pretty(value);
                let json = json.map_err(|e| Error::data(format!("the result has no JSON form: {e}")))?;
                printable_json(&json).into_owned()
            }
        };
        match writeln!(std::io::stdout().lock(), "{text}") {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(Error::data(format!("the standard output cannot be written: {e}")))
            }
            _ => Ok(()),
        }
    }
}
