//! Changes of a model's tensors, by the tensor.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use kron_adapter::extras::ChangeKind;
use kron_adapter::resolve::{BaseModel, place_change, place_experts, place_layers, place_trained_tensors};
use kron_adapter::text;
use kron_core::Dtype;

use super::fold::{Fold, Workspace};
use super::inputs::{Input, Inputs};
use super::shard;
use crate::model::Base;
use crate::{Error, Result};

/// Folds by the index of a shard, and of a tensor in it.
pub struct Folds<'a>(HashMap<(usize, usize), Fold<'a>>);

impl<'a> Folds<'a> {
    /// Finds the tensor of every layer and of every trained tensor, and measures norms that need all rows.
    ///
    /// # Errors
    /// As [`by_tensor`], and if a tensor cannot be read.
    pub fn new(base: &Base, inputs: &'a Inputs) -> Result<Self> {
        let mut folds = HashMap::new();
        let mut workspace = Workspace::default();
        for (tensor, mut fold) in by_tensor(base, inputs)? {
            let Some((shard, index)) = base.find(&tensor) else { continue };
            if fold.needs_norms() {
                let bands: Vec<_> = fold.bands().collect();
                shard::read_tensor(&base.shards[shard], index, 0, bands, |first_row, band| {
                    fold.measure(band, first_row, &mut workspace)
                })?;
            }
            folds.insert((shard, index), fold);
        }
        Ok(Self(folds))
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
/// As [`place_layers`], [`place_trained_tensors`] and [`place_change`], and if two adapters change one tensor and
/// one of them replaces or rescales it.
pub fn by_tensor<'a>(base: &impl BaseModel, inputs: &'a Inputs) -> Result<HashMap<String, Fold<'a>>> {
    let mut folds = ByTensor(HashMap::new());
    inputs.all.iter().try_for_each(|input| folds.add(base, input))?;
    Ok(folds.0)
}

struct ByTensor<'a>(HashMap<String, Fold<'a>>);

impl<'a> ByTensor<'a> {
    fn add(&mut self, base: &impl BaseModel, input: &'a Input) -> Result<()> {
        let Input { adapter, extras, weight, .. } = input;
        for (layer, place) in adapter.layers().iter().zip(place_layers(adapter, base)?) {
            let sides = [layer.shape().d_out(), layer.shape().d_in()];
            let [rows, columns] = if place.transposed { [sides[1], sides[0]] } else { sides };
            let magnitude = extras.magnitudes.get(layer.module());
            let fold = self.fold(input, place.tensor, place.dtype, (rows, columns), magnitude.is_some())?;
            fold.add_delta(layer, *weight, place.transposed)?;
            if let Some(magnitude) = magnitude {
                fold.rescale(magnitude, place.transposed);
            }
        }
        for placed in place_experts(&extras.experts, base)? {
            let Some(shape) = placed.experts.first().map(|theta| *theta.shape()) else { continue };
            let size = (placed.experts.len() * shape.d_out(), shape.d_in());
            let fold = self.fold(input, placed.tensor.clone(), placed.dtype, size, false)?;
            fold.add_experts(placed, *weight)?;
        }
        for (trained, place) in adapter.trained_tensors().iter().zip(place_trained_tensors(adapter, base)?) {
            let mut size = size(trained.shape(), trained.values());
            if trained.rows().is_some() {
                size.0 = base.tensor(&place.tensor).map_or(0, |(_, shape)| shape[0]);
            }
            let fold = self.fold(input, place.tensor, place.dtype, size, true)?;
            match trained.rows() {
                Some(rows) => fold.replace_rows(rows, trained.values()),
                None => fold.replace(trained.values()),
            }
        }
        for change in &extras.changes {
            let (tensor, dtype) = place_change(change, base)?;
            let size = size(change.shape(), change.values());
            match change.kind() {
                ChangeKind::Copy => {}
                ChangeKind::Add(scale) => {
                    let scale = (f64::from(scale) * weight) as f32;
                    self.fold(input, tensor, dtype, size, false)?.add_values(change.values(), scale);
                }
            }
        }
        Ok(())
    }

    /// Returns the fold of a tensor; one that is `alone` takes no other change.
    fn fold(
        &mut self,
        input: &Input,
        tensor: String,
        dtype: Dtype,
        (rows, columns): (usize, usize),
        alone: bool,
    ) -> Result<&mut Fold<'a>> {
        match self.0.entry(tensor) {
            Entry::Vacant(entry) => Ok(entry.insert(Fold::new(dtype, rows, columns))),
            Entry::Occupied(entry) if alone || entry.get().is_alone() => Err(Error::data(format!(
                "{}: {} changes twice, but a tensor that is replaced or rescaled by DoRA takes no other change",
                input.path,
                text::name(entry.key())
            ))),
            Entry::Occupied(entry) => Ok(entry.into_mut()),
        }
    }
}

/// Returns the rows and columns of a tensor, whose rows lie along its last dimension. Those of a 1×1 convolution,
/// d_out × d_in × 1 × 1, are those of its layer.
fn size(mut shape: &[usize], values: &[f32]) -> (usize, usize) {
    while let [rest @ .., 1] = shape
        && rest.len() > 1
    {
        shape = rest;
    }
    let columns = shape.last().copied().unwrap_or(1).max(1);
    (values.len() / columns, columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_has_the_size_of_its_layer() {
        for (shape, want) in [
            (&[][..], (1, 1)),
            (&[6], (1, 6)),
            (&[3, 2], (3, 2)),
            (&[3, 2, 1, 1], (3, 2)),
            (&[6, 1, 1, 1], (6, 1)),
            (&[2, 3, 1], (2, 3)),
            (&[4, 3, 2], (12, 2)),
            (&[3, 0], (0, 1)),
        ] {
            let values = vec![0.0; shape.iter().product()];
            assert_eq!(size(shape, &values), want, "{shape:?}");
        }
    }
}
