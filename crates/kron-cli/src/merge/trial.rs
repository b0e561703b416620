//! Merge in memory into a model of zeros, which needs no file: what a fuzzer calls.

use kron_adapter::resolve::BaseModel;

use super::fold::Workspace;
use super::folds::by_tensor;
use super::inputs::{Inputs, Unresolved};
use crate::Result;

/// Matches adapters with a model of zeros, folds them band by band as a merge does, and returns the number of
/// bytes that were folded.
///
/// # Errors
/// As `kron merge`, where an adapter does not match the model, changes what it does not have, or makes a value
/// that is not finite.
pub fn fold_zeros(adapters: Vec<Unresolved>, base: &impl BaseModel, skip_unsupported: bool) -> Result<usize> {
    let inputs = Inputs::new(adapters, base, skip_unsupported)?;
    let (mut workspace, mut bytes) = (Workspace::default(), 0);
    for (tensor, mut fold) in by_tensor(base, &inputs)? {
        let bands: Vec<_> = fold.bands().collect();
        if fold.needs_norms() {
            for &(first_row, len) in &bands {
                with_zeros(len, |band| fold.measure(band, first_row, &mut workspace))?;
            }
        }
        for (first_row, len) in bands {
            with_zeros(len, |band| fold.apply(&tensor, first_row, band, &mut workspace))?;
            bytes += len;
        }
    }
    Ok(bytes)
}

/// Calls `with` with so many zeros, aligned for every dtype.
fn with_zeros(len: usize, with: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut words = vec![0u32; len.div_ceil(4)];
    with(&mut bytemuck::cast_slice_mut(&mut words)[..len])
}
