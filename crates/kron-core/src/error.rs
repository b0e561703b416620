//! [`Error`]: every message names the value and the rule that it broke.

/// One sentence with the value and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A dimension, rank or factor that cannot make a [`KronShape`](crate::KronShape), or that a
    /// device's integers cannot hold.
    #[error("{0}")]
    Shape(String),
    /// A scale, probability or other value outside its range.
    #[error("{0}")]
    Value(String),
    /// A buffer or view that does not fit the shape.
    #[error("{what} has {got}, but {rule}")]
    Buffer {
        /// The argument's name.
        what: &'static str,
        /// Size or stride that the caller passed.
        got: String,
        /// Size or stride that the call needs, and why.
        rule: String,
    },
    /// An instruction set, driver or device that this machine or this build lacks.
    #[error("{0}")]
    Unsupported(String),
    /// A device, or its emulation, that refused a launch or failed in one.
    #[error("{0}")]
    Device(String),
}

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
