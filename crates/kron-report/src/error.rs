//! The crate's one error.

/// A page or a chart that the libraries underneath could not write.
///
/// No value of the data causes it: it stands for failures such as a full memory.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be written: {0}")]
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

impl Error {
    pub(crate) fn new(cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(cause))
    }
}
