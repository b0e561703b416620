//! One error type; every message names the value and the rule it broke.

/// What went wrong, in one sentence with the numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A dimension, rank or factor that cannot make a [`KronShape`](crate::KronShape).
    #[error("{0}")]
    Shape(String),
    /// A scale, probability or other number outside its range.
    #[error("{0}")]
    Value(String),
    /// A buffer or view that does not fit the shape.
    #[error("{what} has {got}, but {rule}")]
    Buffer {
        /// The argument's name.
        what: &'static str,
        /// What the caller passed.
        got: String,
        /// What it has to be, and why.
        rule: String,
    },
    /// This machine lacks what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// A device, or its emulation, that refused a launch or failed in one.
    #[error("{0}")]
    Device(String),
    /// A file whose contents break the format.
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's own error.
        source: std::io::Error,
    },
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
