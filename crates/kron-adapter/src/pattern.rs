//! [`Pattern`]: modules of a model by their names.

use regex::Regex;

use crate::{Error, Result};

/// Pattern for the names of modules, such as `q_proj`, `attention.self.query` or `*.attention.*`.
///
/// A pattern matches a whole dotted path, or a whole part of it after a dot; `*` stands for any characters, including
/// dots.
///
/// ```
/// use kron_adapter::Pattern;
///
/// assert!(Pattern::new("q_proj")?.matches("model.layers.0.self_attn.q_proj"));
/// assert!(!Pattern::new("proj")?.matches("model.layers.0.self_attn.q_proj"));
/// assert!(Pattern::new("layers.*.q_proj")?.matches("model.layers.0.self_attn.q_proj"));
/// # Ok::<(), kron_adapter::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The pattern is empty, or longer than an automaton may be.
    pub fn new(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::usage(
                "a pattern for module names is empty, but it names at least one module",
            ));
        }
        let parts: Vec<String> = text.split('*').map(regex::escape).collect();
        let regex = Regex::new(&format!(r"^(?:.*\.)?{}$", parts.join(".*")));
        let regex =
            regex.map_err(|e| Error::usage(format!("the pattern for module names is refused: {e}")))?;
        Ok(Self { text: text.into(), regex })
    }

    /// Parses a list of patterns.
    ///
    /// # Errors
    /// As [`Pattern::new`].
    pub fn list<P: AsRef<str>>(patterns: &[P]) -> Result<Vec<Self>> {
        patterns.iter().map(|pattern| Self::new(pattern.as_ref())).collect()
    }

    /// Text of the pattern.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns `true` if a module's dotted path matches.
    pub fn matches(&self, module: &str) -> bool {
        self.regex.is_match(module)
    }
}
