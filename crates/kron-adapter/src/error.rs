//! Errors of readers, writers and planning.

use std::sync::Arc;

/// One sentence that names the value and the rule it broke.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    suggestion: Option<Suggestion>,
    source: Option<Arc<std::io::Error>>,
}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The caller asked for what cannot be done: another call may succeed.
    Usage,
    /// A file's contents break a rule, or the system refused it.
    Data,
}

/// Another call that would succeed; a program says it by the names of its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suggestion {
    /// [`OutputFormat::Lora`](crate::OutputFormat::Lora), as the layer is one.
    Lora,
    /// [`OutputFormat::Lora`](crate::OutputFormat::Lora), which every layer has a form in.
    LosslessLora,
    /// [`IfExists::Replace`](crate::IfExists::Replace), or another name.
    Replace,
    /// Another name: what is there is more than an adapter.
    OtherName,
}

impl Error {
    /// An error of [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: one_line(message.into()), suggestion: None, source: None }
    }

    /// An error of [`Kind::Data`].
    pub fn data(message: impl Into<String>) -> Self {
        Self { kind: Kind::Data, message: one_line(message.into()), suggestion: None, source: None }
    }

    /// An error of the operating system about `path`, which [`source`](std::error::Error::source) returns.
    pub fn io(path: impl std::fmt::Display, source: std::io::Error) -> Self {
        let message = format!("{path}: {source}");
        Self { source: Some(Arc::new(source)), ..Self::data(message) }
    }

    pub(crate) fn with(self, suggestion: Suggestion) -> Self {
        Self { suggestion: Some(suggestion), ..self }
    }

    /// The same sentence as an error of usage: for a caller to whom a file that
    /// gives no answer must not look like an answer.
    pub fn into_usage(self) -> Self {
        Self { kind: Kind::Usage, ..self }
    }

    /// Whose fault it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The sentence without the suggestion, in one line without control characters.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What would succeed, where that is known.
    pub const fn suggestion(&self) -> Option<Suggestion> {
        self.suggestion
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
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<kron_core::Error> for Error {
    /// An error of [`Kind::Data`], with the same sentence.
    fn from(error: kron_core::Error) -> Self {
        Self::data(error.to_string())
    }
}
