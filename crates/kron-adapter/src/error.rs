//! Errors of readers, writers and planning.

use std::sync::Arc;

use crate::text::sentence;

/// One sentence that names the value and the broken rule.
///
/// ```
/// use kron_adapter::{Kind, Scaling};
///
/// let error = Scaling::plain(f32::NAN).unwrap_err();
/// assert_eq!((error.kind(), error.suggestion()), (Kind::Data, None));
/// ```
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    suggestion: Option<Suggestion>,
    source: Option<Arc<std::io::Error>>,
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Origin of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller asked for the impossible; another call may succeed.
    Usage,
    /// A file breaks a rule, or the system refused.
    Data,
}

/// Another call that would succeed. A program phrases it by the names of its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suggestion {
    /// Write as [`OutputFormat::Lora`](crate::OutputFormat::Lora): the layer is a LoRA.
    Lora,
    /// Write as [`OutputFormat::Lora`](crate::OutputFormat::Lora), which fits every layer without loss.
    LosslessLora,
    /// Use [`IfExists::Replace`](crate::IfExists::Replace), or another name.
    Replace,
    /// Use another name: the existing folder holds more than an adapter.
    OtherName,
    /// Set [`LoraOptions::max_bytes`](crate::peft::LoraOptions::max_bytes): the adapter is large as LoRAs.
    MaxBytes,
    /// Merge without the trained tensors.
    FactorsOnly,
    /// Leave out what cannot be merged.
    SkipUnsupported,
    /// Set [`ReadOptions::adapter_name`](crate::ReadOptions::adapter_name): the file has several adapters.
    AdapterName,
    /// Set [`ReadOptions::only`](crate::ReadOptions::only): the file has parts for several models.
    Only,
}

impl Error {
    /// Makes an error of [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: sentence(message.into()), suggestion: None, source: None }
    }

    /// Makes an error of [`Kind::Data`].
    pub fn data(message: impl Into<String>) -> Self {
        Self { kind: Kind::Data, message: sentence(message.into()), suggestion: None, source: None }
    }

    /// Makes an error of the operating system about `path`; [`source`](std::error::Error::source)
    /// returns the cause.
    pub fn io(path: impl std::fmt::Display, source: std::io::Error) -> Self {
        let message = format!("{path}: {source}");
        Self { source: Some(Arc::new(source)), ..Self::data(message) }
    }

    /// Wraps an error of the system that occurred while reading; the caller adds the file's name.
    pub(crate) fn reading(source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            return Self::data("became shorter while it was read");
        }
        let message = source.to_string();
        Self { source: Some(Arc::new(source)), ..Self::data(message) }
    }

    /// Puts a name before the sentence: `name: sentence`.
    pub fn about(self, name: impl std::fmt::Display) -> Self {
        let message = sentence(format!("{name}: {}", self.message));
        Self { message, ..self }
    }

    /// Puts more behind the sentence: `sentence; more`.
    pub(crate) fn and(self, more: impl std::fmt::Display) -> Self {
        let message = sentence(format!("{}; {more}", self.message));
        Self { message, ..self }
    }

    pub(crate) fn with(self, suggestion: Suggestion) -> Self {
        Self { suggestion: Some(suggestion), ..self }
    }

    /// Returns the same sentence as an error of [`Kind::Usage`], for a caller whose
    /// exit code for data already means an answer.
    pub fn into_usage(self) -> Self {
        Self { kind: Kind::Usage, ..self }
    }

    /// Origin of the error.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The sentence without the suggestion, on one line without control characters, and at most 4000
    /// characters long.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Another call that would succeed, if known.
    pub const fn suggestion(&self) -> Option<Suggestion> {
        self.suggestion
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match self.suggestion {
            None => Ok(()),
            Some(suggestion) => write!(f, "; {suggestion}"),
        }
    }
}

impl std::fmt::Display for Suggestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Suggestion::Lora => "write it as a LoRA",
            Suggestion::LosslessLora => "as a LoRA it loses nothing",
            Suggestion::Replace => "give another name, or ask to replace it",
            Suggestion::OtherName => "a folder is replaced only when it holds an adapter and nothing else",
            Suggestion::MaxBytes => "max_bytes allows more",
            Suggestion::AdapterName => "the name of one chooses it",
            Suggestion::Only => "the start of its modules' names chooses one part",
            Suggestion::FactorsOnly => "without its trained tensors the adapter can be taken",
            Suggestion::SkipUnsupported => "what cannot be merged can be left out",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<kron_core::Error> for Error {
    /// Makes an error of [`Kind::Data`], with the same sentence.
    fn from(error: kron_core::Error) -> Self {
        Self::data(error.to_string())
    }
}
