//! ΔW of every layer, by the tensor it is added to.

use std::collections::HashMap;

use kron_adapter::Adapter;
use kron_adapter::resolve::place_layers;

use super::fold::Fold;
use crate::Result;
use crate::model::Base;

/// ΔW by the index of a shard, and of a tensor in it.
pub struct Folds(HashMap<(usize, usize), Fold>);

impl Folds {
    /// Finds every layer's tensor.
    ///
    /// # Errors
    /// As [`place_layers`].
    pub fn new(base: &Base, adapter: &Adapter) -> Result<Self> {
        let mut folds = HashMap::new();
        for (layer, placement) in adapter.layers().iter().zip(place_layers(adapter, base)?) {
            let Some(place) = base.find(&placement.tensor) else { continue };
            folds.insert(place, Fold::new(layer, placement.dtype, placement.transposed)?);
        }
        Ok(Self(folds))
    }

    /// Returns ΔW for the adapted tensors of a shard, by their index in it.
    pub fn of_shard(&self, shard: usize) -> HashMap<usize, &Fold> {
        let of_shard = self.0.iter().filter(|((index, _), _)| *index == shard);
        of_shard.map(|(&(_, tensor), fold)| (tensor, fold)).collect()
    }
}
