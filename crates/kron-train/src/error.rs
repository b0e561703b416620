//! Error type of the crate; every message names the value and the rule that it broke.

use std::path::Path;

/// Error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Invalid setting or argument, or a combination of them.
    #[error("{0}")]
    Invalid(String),
    /// Unreadable, unwritable or malformed file.
    #[error("{path}: {message}")]
    File {
        /// Path of the file.
        path: String,
        /// Rule that the file breaks.
        message: String,
    },
    /// The loss is NaN or infinite.
    #[error(
        "the loss of step {step} is {loss}, but training needs a finite one: lower the learning rate, \
         or clip the gradient; the last checkpoint is as it was"
    )]
    Diverged {
        /// Number of the step, from 1.
        step: u64,
        /// Mean loss of the batch so far.
        loss: f32,
    },
    /// The gradient is NaN or infinite, though the loss is finite.
    #[error(
        "the gradient of step {step} has a length of {gradient}, but training needs a finite one: lower the \
         learning rate; the last checkpoint is as it was"
    )]
    Exploded {
        /// Number of the step, from 1.
        step: u64,
        /// Norm of the gradient.
        gradient: f64,
    },
    /// Another rank failed, or an exchange between ranks did.
    #[error("{0}")]
    Rank(String),
    /// A signal ended the run before its result.
    #[error("{0}")]
    Stopped(String),
    /// Error of a tensor operation, without its backtrace.
    #[error("{0}")]
    Candle(String),
    /// Error of a shape, a scale or a kernel call.
    #[error(transparent)]
    Core(#[from] kron_core::Error),
    /// Error of an adapter, a plan or an adapter file.
    #[error(transparent)]
    Adapter(#[from] kron_adapter::Error),
}

impl From<candle_core::Error> for Error {
    /// Keeps the sentence alone: with `RUST_BACKTRACE=1` candle appends its stack frames to it.
    fn from(error: candle_core::Error) -> Self {
        use candle_core::Error as E;
        fn sentence(error: &E) -> String {
            match error {
                E::WithBacktrace { inner, .. } => sentence(inner),
                E::WithPath { inner, path } => format!("{}: {}", path.display(), sentence(inner)),
                E::Context { inner, context } => format!("{context}: {}", sentence(inner)),
                E::WrappedContext { wrapped, context } => format!("{context}: {wrapped}"),
                other => other.to_string(),
            }
        }
        Self::Candle(one_line(sentence(&error).split('\n').map(str::trim).collect::<Vec<_>>().join("; ")))
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Makes the error of an invalid setting.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::Invalid(one_line(message.into()))
}

/// Makes the error of a file.
pub fn file(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::File { path: one_line(path.display().to_string()), message: one_line(message.to_string()) }
}

/// Makes one line of a message: foreign text in it may hold line ends or terminal commands, and be of any length.
fn one_line(message: String) -> String {
    const SHOWN: usize = 600;
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if message.len() <= SHOWN {
        return message.chars().map(visible).collect();
    }
    // The rule stands at the end.
    let (begin, end) =
        (message.floor_char_boundary(SHOWN / 2), message.ceil_char_boundary(message.len() - SHOWN / 2));
    format!("{}…{}", &message[..begin], &message[end..]).chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line_of_some_length() {
        assert_eq!(invalid("a\nb\u{1b}[31m").to_string(), "a\u{fffd}b\u{fffd}[31m");
        let long = invalid(format!("label {} is wrong", "ß".repeat(1 << 20))).to_string();
        assert!(long.len() < 700 && long.starts_with("label ßß") && long.ends_with("ßß is wrong"), "{long}");
        let error = candle_core::Error::msg("a\nb").bt().context("c").with_path("d");
        assert_eq!(Error::from(error).to_string(), "d: c: a; b");
    }
}
