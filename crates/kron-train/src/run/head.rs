//! Classification head in an adapter, or in a file of its own: weight, bias, and the names of its classes.

use std::path::Path;

use candle_core::Tensor;
use candle_nn::Linear;
use kron_adapter::io::{self, write_atomic};
use kron_adapter::{Tensors, TrainedTensor};
use kron_candle::{Adapter, IfExists};

use super::checkpoint::tensor;
use crate::error::{Result, file, invalid};
use crate::files;
use crate::model::Weights;

/// Key of the names in the metadata: a JSON list, because a name may hold any character.
const LABELS: &str = Adapter::LABELS_KEY;
/// Tensors in the module [`Adapter::HEAD`].
const WEIGHT: &str = "head.weight";
const BIAS: &str = "head.bias";

/// A head, and the sorted names of its classes.
pub type LabelledHead = (Linear, Vec<String>);

/// Returns the adapter with a head and the names of its classes.
///
/// # Errors
/// The adapter has a layer of the head's name.
pub fn put_into(adapter: Adapter, head: &Linear, labels: &[String]) -> Result<Adapter> {
    let trained = |(name, tensor): (&str, &Tensor)| -> Result<TrainedTensor> {
        let values = tensor.flatten_all()?.to_vec1()?;
        Ok(TrainedTensor::new(name, tensor.dims(), values)?)
    };
    let parts = [(WEIGHT, head.weight())].into_iter().chain(head.bias().map(|bias| (BIAS, bias)));
    let tensors = parts.map(trained).collect::<Result<_>>()?;
    let mut metadata = adapter.metadata().clone();
    metadata.insert(LABELS.into(), serde_json::to_string(labels).map_err(|e| invalid(e.to_string()))?);
    Ok(adapter.with_metadata(metadata)?.with_trained_tensors(tensors)?)
}

/// Returns the head that an adapter holds, for a model; `path` names the adapter in messages.
///
/// # Errors
/// The head has no names of classes, or belongs to a model of another width.
pub fn of_adapter(path: &Path, adapter: &Adapter, weights: &Weights) -> Result<Option<LabelledHead>> {
    if adapter.trained_tensor(WEIGHT).is_none() {
        return Ok(None);
    }
    let text = adapter.metadata().get(LABELS).ok_or_else(|| file(path, "has a head, but no labels of it"))?;
    let labels = parse_labels(path, text, false)?;
    let read = |name: &str, dims: &[usize]| {
        let Some(tensor) = adapter.trained_tensor(name) else { return Ok(None) };
        if tensor.shape() != dims {
            let shape = tensor.shape();
            return Err(file(path, format!("{name} is {shape:?}, but {dims:?} was expected")));
        }
        Ok(Some(Tensor::from_slice(tensor.values(), dims, weights.device())?))
    };
    let (weight, bias) = (read(WEIGHT, &[labels.len(), weights.hidden()])?, read(BIAS, &[labels.len()])?);
    Ok(weight.map(|weight| (Linear::new(weight, bias), labels)))
}

/// Returns true for the names of the tensors that are a head of ours.
pub(super) fn is_own(name: &str) -> bool {
    [WEIGHT, BIAS].contains(&name)
}

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

/// Reads a head for a model, and the names of its classes, from its own file or from an adapter file that holds one.
///
/// # Errors
/// The file is damaged, belongs to a model of another width, or holds a value that is not finite.
pub fn read(path: &Path, weights: &Weights) -> Result<LabelledHead> {
    let bytes = io::read(path, files::MAX_WEIGHTS)?;
    let tensors = Tensors::from_bytes(path.display().to_string(), bytes)?;
    let text = tensors.metadata(LABELS).ok_or_else(|| file(path, "is not a head: it has no labels"))?;
    // An adapter holds a head since the names are JSON.
    let labels = parse_labels(path, text, tensors.metadata(Adapter::RESERVED_KEY).is_none())?;
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

/// Parses names of classes: a JSON list, or in a head's own file one name on each line, as earlier heads have them.
fn parse_labels(path: &Path, text: &str, own_file: bool) -> Result<Vec<String>> {
    let labels: Vec<String> = match serde_json::from_str(text) {
        Ok(labels) => labels,
        Err(_) if own_file => text.split('\n').map(str::to_owned).collect(),
        Err(e) => return Err(file(path, format!("has labels that are not a JSON list of texts: {e}"))),
    };
    match labels.is_sorted_by(|a, b| a < b) {
        true => Ok(labels),
        false => Err(file(path, "has labels that are not sorted, or one label twice")),
    }
}
