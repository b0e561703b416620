//! File of a classification head: weight, bias, and the names of its classes.

use std::path::Path;

use candle_nn::Linear;
use kron_adapter::Tensors;
use kron_adapter::io::{self, write_atomic};
use kron_candle::IfExists;

use super::checkpoint::tensor;
use crate::error::{Result, file};
use crate::files;
use crate::model::Weights;

/// Key of the names in the file's metadata: a JSON list, because a name may hold any character.
const LABELS: &str = "labels";
const WEIGHT: &str = "head.weight";
const BIAS: &str = "head.bias";

/// Writes a head and the names of its classes.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, head: &Linear, labels: &[String]) -> Result<()> {
    let mut tensors = vec![(WEIGHT, head.weight().clone())];
    tensors.extend(head.bias().map(|bias| (BIAS, bias.clone())));
    let names = serde_json::to_string(labels).map_err(|e| file(path, e))?;
    let metadata = [(LABELS.to_owned(), names)].into();
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| file(path, e))?;
    Ok(write_atomic(path, IfExists::Replace, |out| out.write_all(&bytes))?)
}

/// Reads a head for a model, and the names of its classes.
///
/// # Errors
/// The file is damaged, belongs to a model of another width, or holds a value that is not finite.
pub fn read(path: &Path, weights: &Weights) -> Result<(Linear, Vec<String>)> {
    let bytes = io::read(path, files::MAX_WEIGHTS)?;
    let tensors = Tensors::from_bytes(path.display().to_string(), bytes)?;
    let text = tensors.metadata(LABELS).ok_or_else(|| file(path, "is not a head: it has no labels"))?;
    // Earlier heads have one name on each line.
    let labels: Vec<String> =
        serde_json::from_str(text).unwrap_or_else(|_| text.split('\n').map(str::to_owned).collect());
    if !labels.is_sorted_by(|a, b| a < b) {
        return Err(file(path, "has labels that are not sorted, or one label twice"));
    }
    let read = |name: &str, dims: &[usize]| {
        let values = tensor(path, &tensors, name, dims, weights.device())?;
        match values.flatten_all()?.to_vec1::<f32>()?.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(file(path, format!("has {value} in {name}, but a head's values are finite"))),
            None => Ok(values),
        }
    };
    let weight = read(WEIGHT, &[labels.len(), weights.hidden()])?;
    let bias = tensors.has(BIAS).then(|| read(BIAS, &[labels.len()])).transpose()?;
    Ok((Linear::new(weight, bias), labels))
}
