//! Copies of the model's tensors in an adapter's file, which are left out if they equal the model's.

use kron_adapter::extras::{ChangeKind, TensorChange};
use kron_adapter::resolve::place_change;
use kron_adapter::{text, with_dtype};
use kron_core::{Dtype, Element};

use super::fold::BAND;
use super::inputs::{Input, Inputs};
use super::shard;
use crate::model::Base;
use crate::{Error, Result};

/// Returns the copies of an adapter.
pub fn copies(inputs: &Inputs) -> impl Iterator<Item = (&Input, &TensorChange)> {
    inputs.all.iter().flat_map(|input| {
        let changes = input.extras.changes.iter();
        changes.filter(|change| change.kind() == ChangeKind::Copy).map(move |change| (input, change))
    })
}

/// Compares every copy with the model's tensor, and returns a note on each.
///
/// # Errors
/// A copy differs from the model's tensor, or this cannot be read.
pub fn check(base: &Base, inputs: &Inputs) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (input, copy) in copies(inputs) {
        let (tensor, dtype) = place_change(copy, base)?;
        let Some((shard, index)) = base.find(&tensor) else { continue };
        let (source, name) = (text::name(copy.source()), text::name(&tensor));
        let size = copy.values().len() * dtype.size();
        let bands = (0..size).step_by(BAND).map(|at| (at / dtype.size(), BAND.min(size - at))).collect();
        shard::read_tensor(&base.shards[shard], index, 0, bands, |first, band| {
            let equal = with_dtype!(dtype, E => equal::<E>(band, &copy.values()[first..], copy.dtype()))?;
            match equal {
                true => Ok(()),
                false => Err(Error::data(format!(
                    "{}: {source} is a copy of a base weight, but differs from {name} of {}: the adapter belongs to another base, or the weight was trained too",
                    input.path,
                    base.path()
                ))),
            }
        })?;
        notes.push(format!("{source} of {} equals {name} of the model, and was left out", input.path));
    }
    Ok(notes)
}

/// Returns true if values of the model equal those of a copy, which may have been rounded to its own dtype.
fn equal<E: Element>(band: &[u8], copy: &[f32], dtype: Option<Dtype>) -> Result<bool> {
    let values: &[E] = bytemuck::try_cast_slice(band).map_err(|e| Error::data(e.to_string()))?;
    let mut pairs = values.iter().map(|v| v.to_f32()).zip(copy);
    Ok(match dtype {
        None => pairs.all(|(value, copy)| value == *copy),
        Some(dtype) => {
            with_dtype!(dtype, C => pairs.all(|(value, copy)| C::from_f32(value).to_f32() == *copy))
        }
    })
}
