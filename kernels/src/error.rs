//! One error type; every message names the value and the rule it broke.

/// What went wrong, in one sentence with the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Sizes that no launch can serve.
    #[error("{0}")]
    Problem(String),
    /// A buffer that does not fit the problem.
    #[error("{what} has {got}, but {rule}")]
    Buffer {
        /// The argument's name.
        what: &'static str,
        /// What the caller passed.
        got: String,
        /// What it has to be, and why.
        rule: String,
    },
    /// A launch that the device, or its emulation, refused or that failed.
    #[error("{0}")]
    Launch(String),
    /// No driver, no device, or a build without CUDA.
    #[error("{0}")]
    Unavailable(String),
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
