//! Rows of an embedding that were trained: `trainable_token_indices` of PEFT.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::matrix::Matrix;
use crate::{Error, Result, Tensors, text};

/// End of the name of the rows.
pub(super) const END: &str = "token_adapter.trainable_tokens_delta";

/// Rows of a module's weight that take the place of the model's.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRows {
    source: String,
    module: String,
    /// Index of each row in the weight.
    tokens: Vec<usize>,
    rows: Matrix,
}

/// Indices of trained tokens, by the end of the module's name; the empty end is any module's.
pub(crate) type TokenIndices = BTreeMap<String, Vec<usize>>;

/// Reads `trainable_token_indices`: a list, or a list for each module.
///
/// # Errors
/// Fails on anything else, and on an index that occurs twice.
pub(crate) fn indices(value: &Value) -> Result<TokenIndices> {
    let refused =
        || Error::data("trainable_token_indices is a list of different tokens, or one for each module");
    let list = |value: &Value| -> Result<Vec<usize>> {
        let tokens = value.as_array().ok_or_else(refused)?.iter();
        let token = |token: &Value| token.as_u64().and_then(|token| usize::try_from(token).ok());
        let tokens: Vec<usize> =
            tokens.map(|value| token(value).ok_or_else(refused)).collect::<Result<_>>()?;
        let different: BTreeSet<usize> = tokens.iter().copied().collect();
        if different.len() == tokens.len() { Ok(tokens) } else { Err(refused()) }
    };
    match value {
        Value::Null => Ok(TokenIndices::new()),
        Value::Object(modules) => {
            modules.iter().map(|(module, value)| Ok((module.clone(), list(value)?))).collect()
        }
        value => Ok([(String::new(), list(value)?)].into()),
    }
}

impl TokenRows {
    /// Reads the rows of a module.
    ///
    /// # Errors
    /// Fails if the configuration has no tokens for the module, or not one for each row.
    pub(super) fn read(tensors: &Tensors, source: &str, module: &str, all: &TokenIndices) -> Result<Self> {
        let is_end = |end: &str| {
            end.is_empty()
                || module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let tokens = all.iter().find(|(end, _)| is_end(end)).map_or(&[][..], |(_, tokens)| tokens);
        let rows = Matrix::read(tensors, source)?;
        if rows.rows != tokens.len() {
            return Err(Error::data(format!(
                "{}: {} has {} rows, but trainable_token_indices has {} tokens for it",
                tensors.path(),
                text::name(source),
                rows.rows,
                tokens.len()
            )));
        }
        Ok(Self { source: source.into(), module: module.into(), tokens: tokens.to_vec(), rows })
    }

    /// Name in the adapter's file.
    pub fn source(&self) -> &str {
        &self.source
    }
    /// Module of the model.
    pub fn module(&self) -> &str {
        &self.module
    }
    /// Index of each row in the weight.
    pub fn tokens(&self) -> &[usize] {
        &self.tokens
    }
    /// Number of values in a row.
    pub const fn width(&self) -> usize {
        self.rows.cols
    }
    /// The rows, one after the other.
    pub fn values(&self) -> &[f32] {
        &self.rows.data
    }
    /// Returns the same rows of another module.
    #[must_use]
    pub fn in_module(self, module: String) -> Self {
        Self { module, ..self }
    }
}
