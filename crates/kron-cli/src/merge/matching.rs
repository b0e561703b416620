//! What is added to which tensor.

use std::collections::HashMap;

use kron_adapter::Adapter;
use kron_adapter::resolve::place_layers;
use kron_core::{KronShape, LayerDims, Split};

use super::base::Base;
use super::fold::Fold;
use crate::Result;

/// What is folded into which tensor.
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

    /// What is folded into each tensor of a shard, by its place there.
    pub fn of(&self, shard: usize) -> HashMap<usize, &Fold> {
        self.0.iter().filter(|((s, _), _)| *s == shard).map(|(&(_, slot), fold)| (slot, fold)).collect()
    }
}

/// The same ΔW transposed is of this shape.
pub(super) fn transposed(shape: &KronShape) -> kron_core::Result<KronShape> {
    KronShape::new(
        LayerDims { d_out: shape.d_in(), d_in: shape.d_out() },
        Split { a_out: shape.a_in(), a_in: shape.a_out() },
        shape.outer(),
        shape.inner(),
    )
}
