//! Rows of an embedding that were trained: `trainable_token_indices` of PEFT.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::matrix::Matrix;
use crate::{Error, Result, Tensors, TrainedTensor, text};

/// End of the name of the rows.
pub const END: &str = ".token_adapter.trainable_tokens_delta";

/// Indices of trained tokens, by the end of the module's name; the empty end is any module's.
pub type TokenIndices = BTreeMap<String, Vec<usize>>;

/// Reads `trainable_token_indices`: a list, or a list for each module.
///
/// # Errors
/// Fails on anything else, and on an index that occurs twice.
pub fn indices(value: &Value) -> Result<TokenIndices> {
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

/// Reads the rows of a module.
///
/// # Errors
/// Fails if the configuration has no tokens for the module, or not one for each row, and on values that are not finite.
pub fn read(tensors: &Tensors, source: &str, module: &str, all: &TokenIndices) -> Result<TrainedTensor> {
    let is_end = |end: &str| {
        end.is_empty() || module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
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
    TrainedTensor::of_rows(format!("{module}.weight"), tokens.to_vec(), rows.cols, rows.data)
        .map_err(|e| e.about(tensors.path()))
}
