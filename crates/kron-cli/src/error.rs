//! What ends a command early, and the exit codes of the program.

use std::process::ExitCode;

/// The part of `--help` that documents [`Error::code`].
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; for verify, every error is within its bound
  1  the files are at fault; for verify, an error exceeds its bound
  2  the call is at fault; for verify, also a folder that cannot be verified";

/// One sentence that names the value and the rule it broke.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usage,
    Data,
}

impl Error {
    /// The caller asked for what cannot be done.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: one_line(message.into()) }
    }

    /// A file's contents break a rule.
    pub fn data(message: impl Into<String>) -> Self {
        Self { kind: Kind::Data, message: one_line(message.into()) }
    }

    /// The same sentence as an error of usage: for a command whose exit code 1
    /// is an answer, which a file that gives no answer must not look like.
    pub fn into_usage(self) -> Self {
        Self { kind: Kind::Usage, ..self }
    }

    /// The exit code.
    pub fn code(&self) -> ExitCode {
        match self.kind {
            Kind::Data => ExitCode::from(1),
            Kind::Usage => ExitCode::from(2),
        }
    }
}

/// A name from a file may bring line ends, or orders to the terminal.
fn one_line(message: String) -> String {
    match message.contains(char::is_control) {
        true => message.replace(char::is_control, "\u{fffd}"),
        false => message,
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
