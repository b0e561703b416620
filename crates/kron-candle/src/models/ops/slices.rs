//! Elements of candle's tensors as slices.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::vectors::vectorised;

/// Smallest number of rows of one task.
const ROWS: usize = 32;

/// Returns `true` if the fused ops support all these tensors.
pub(in crate::models) fn is_fusable(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device().is_cpu() && x.dtype() == DType::F32)
}

/// Returns the elements of a contiguous float32 operand of an op.
pub(super) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[range(layout)?])
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("an operand has strides {:?}, but it is contiguous", layout.stride()),
    }
}

/// Borrows the elements of a contiguous float32 tensor on the CPU.
pub(super) fn read(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = range(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Floats { storage, range }),
        _ => bail!("a tensor is {:?} on {:?}, but it is f32 on the CPU", tensor.dtype(), tensor.device()),
    }
}

/// Range of a float32 storage, behind candle's lock.
struct Floats<G> {
    storage: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for Floats<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => &[], // excluded by `read`
        }
    }
}

/// Makes rows of `width` from the rows of each operand: `f` gets a row of zeros and the operands' rows. The last row may
/// be shorter.
pub(super) fn map_rows<const N: usize>(
    operands: [&[f32]; N],
    width: usize,
    f: impl Fn(&mut [f32], [&[f32]; N]) + Sync,
) -> Vec<f32> {
    let mut rows = vec![0.0; operands[0].len()];
    let each = rows.par_chunks_mut(width).enumerate().with_min_len(ROWS);
    each.for_each(|(i, row)| {
        let operands = operands.map(|operand| &operand[i * width..][..row.len()]);
        vectorised!(f(row, operands));
    });
    rows
}

/// Makes a tensor of the shape of `tensor`.
pub(super) fn like(values: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}
