//! Reading of an adapter of any format for a model.

use std::path::Path;

use kron_adapter::resolve::{Resolved, place_trained_tensors, resolve_module_names};
use kron_adapter::text::first_and_more;
use kron_adapter::{Adapter, TrainedTensor};

use super::head;
use crate::error::Result;
use crate::model::Weights;

/// Adapter with the names of a model.
#[derive(Clone, Debug)]
pub struct ReadAdapter {
    /// The factors, and all that was trained beside them.
    pub adapter: Adapter,
    /// The model's weights, with trained tensors of the adapter in the place of the model's.
    pub weights: Weights,
    /// Sentences about what reading changed, and what of the adapter is not used.
    pub notes: Vec<String>,
}

/// Reads an adapter of any known format for the model at a path, whose weights these are.
///
/// # Errors
/// The file or folder is damaged or of no known format, or a layer or a trained tensor has no place in the model.
pub fn read_adapter(path: &Path, model: &Path, weights: &Weights) -> Result<ReadAdapter> {
    let loaded = kron_adapter::read(path)?;
    loaded.check_writable()?;
    let base = weights.as_base(model.display().to_string());
    let Resolved { adapter, notes } = resolve_module_names(&loaded.adapter, &base)?;
    let others = adapter.trained_tensors().iter().filter(|tensor| !head::is_own(tensor.name()));
    let (own, foreign): (Vec<_>, Vec<_>) = others.cloned().partition(|tensor| weights.has_a(tensor.name()));
    place_trained_tensors(&adapter.clone().with_trained_tensors(own.clone())?, &base)?;
    let unused = first_and_more(foreign.iter().map(TrainedTensor::name).collect::<Vec<_>>());
    let unused = unused.map(|names| format!("trained tensors of the adapter are not used: {names}"));
    let weights = weights.replaced(&adapter, &own)?;
    Ok(ReadAdapter { adapter, weights, notes: loaded.notes.into_iter().chain(notes).chain(unused).collect() })
}
