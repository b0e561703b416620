//! Changes of a model's tensors, by the tensor.

use std::collections::HashMap;

use kron_adapter::Adapter;
use kron_adapter::resolve::{BaseModel, Placement, place_layers, place_trained_tensors};

use super::fold::Fold;
use crate::Result;
use crate::model::Base;

/// Folds by the index of a shard, and of a tensor in it.
pub struct Folds<'a>(HashMap<(usize, usize), Fold<'a>>);

impl<'a> Folds<'a> {
    /// Finds the tensor of every layer and of every trained tensor.
    ///
    /// # Errors
    /// As [`by_tensor`].
    pub fn new(base: &Base, adapter: &'a Adapter) -> Result<Self> {
        let folds = by_tensor(base, adapter)?.into_iter();
        Ok(Self(folds.filter_map(|(tensor, fold)| Some((base.find(&tensor)?, fold))).collect()))
    }

    /// Returns the folds of a shard, by the index of the tensor in it.
    pub fn of_shard(&self, shard: usize) -> HashMap<usize, &Fold<'a>> {
        let of_shard = self.0.iter().filter(|((index, _), _)| *index == shard);
        of_shard.map(|(&(_, tensor), fold)| (tensor, fold)).collect()
    }
}

/// Returns the folds by the tensor's name.
///
/// # Errors
/// As [`place_layers`] and [`place_trained_tensors`].
pub fn by_tensor<'a>(base: &impl BaseModel, adapter: &'a Adapter) -> Result<HashMap<String, Fold<'a>>> {
    let mut folds = HashMap::new();
    for (layer, Placement { tensor, dtype, transposed }) in
        adapter.layers().iter().zip(place_layers(adapter, base)?)
    {
        folds.insert(tensor, Fold::add(layer, dtype, transposed)?);
    }
    let replaced = adapter.trained_tensors().iter().zip(place_trained_tensors(adapter, base)?);
    folds.extend(replaced.map(|(trained, to)| (to.tensor, Fold::replace(trained, to.dtype))));
    Ok(folds)
}
