//! Elements of candle's CPU storage as slices and as views of kron-core.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, WithDType, bail};
use kron_core::Element;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

use crate::device_ops::{Activation, Operand, range};

/// Views a float32 operand as a matrix; `None` for another dtype, and for one with repeated elements.
pub(crate) fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout) -> Option<ArrayView2<'a, f32>> {
    let (CpuStorage::F32(values), &[rows, columns]) = (storage, layout.dims()) else { return None };
    let shape = (rows, columns).strides((layout.stride()[0], layout.stride()[1]));
    ArrayView2::from_shape(shape, values.get(layout.start_offset()..)?).ok()
}

/// Returns the elements of a contiguous operand.
pub(crate) fn elements<E: WithDType>((storage, layout): Operand<'_, CpuStorage>) -> Result<&[E]> {
    Ok(&storage.as_slice::<E>()?[range(layout)?])
}

/// Returns the elements of a storage just made by an op.
pub(crate) fn elements_mut<E: Activation>(storage: &mut CpuStorage) -> Result<&mut [E]> {
    let dtype = storage.dtype();
    match E::slice_mut(storage) {
        Some(elements) => Ok(elements),
        None => bail!("a tensor is {dtype:?}, but {} was expected", <E as Element>::DTYPE),
    }
}

/// Views elements as a matrix.
pub(crate) fn view<E>(rows: usize, cols: usize, elements: &[E]) -> Result<ArrayView2<'_, E>> {
    ArrayView2::from_shape((rows, cols), elements).map_err(|_| wrong_len(rows, cols, elements.len()))
}

/// Views elements as a matrix to write.
pub(crate) fn view_mut<E>(rows: usize, cols: usize, elements: &mut [E]) -> Result<ArrayViewMut2<'_, E>> {
    let len = elements.len();
    ArrayViewMut2::from_shape((rows, cols), elements).map_err(|_| wrong_len(rows, cols, len))
}

fn wrong_len(rows: usize, cols: usize, got: usize) -> candle_core::Error {
    candle_core::Error::msg(format!("an operand has {got} elements, but {rows} rows of {cols} were expected"))
}
