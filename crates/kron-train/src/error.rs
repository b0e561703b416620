//! One error type; every message names the value and the rule it broke.

use std::path::Path;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, an argument or a combination of them.
    #[error("{0}")]
    Invalid(String),
    /// A file whose contents break a rule.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The loss is no number.
    #[error(
        "the loss of step {step} is {loss}, but training needs a finite one: lower the learning rate, \
         or clip the gradient; the last checkpoint is as it was"
    )]
    Diverged {
        /// Counted from 1.
        step: u64,
        /// NaN or infinity.
        loss: f32,
    },
    /// The gradient is no number, though the loss is one.
    #[error(
        "the gradient of step {step} has a length of {gradient}, but training needs a finite one: lower the \
         learning rate; the last checkpoint is as it was"
    )]
    Exploded {
        /// Counted from 1.
        step: u64,
        /// NaN or infinity.
        gradient: f64,
    },
    /// A tensor operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A shape, a scale or a call of the kernels.
    #[error(transparent)]
    Core(#[from] kron_core::Error),
    /// An adapter, a plan or a file of ours.
    #[error(transparent)]
    Adapter(#[from] kron_adapter::Error),
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A setting that cannot be.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::Invalid(message.into())
}

/// A file that cannot be read, written or understood, and why.
pub fn file(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::File { path: path.display().to_string(), message: message.to_string() }
}
