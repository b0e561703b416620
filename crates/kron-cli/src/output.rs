//! What a command prints on the standard output.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::{Error, Result};

/// How a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For a reader.
    Table,
    /// One JSON value; a number that is not finite is `null`.
    Json,
}

impl Output {
    /// Prints `value` as JSON, or what `table` makes of it.
    ///
    /// # Errors
    /// A standard output that cannot be written; one that the reader closed is none.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
        let text = match self {
            Output::Table => table(value),
            Output::Json => serde_json::to_string_pretty(value)
                .map_err(|e| Error::data(format!("the result has no JSON form: {e}")))?,
        };
        match writeln!(std::io::stdout().lock(), "{text}") {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(Error::data(format!("the standard output cannot be written: {e}")))
            }
            _ => Ok(()),
        }
    }
}
