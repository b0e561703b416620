//! Operands of a backend from raw pointers: the trait, and the host's.

use kron_core::{Backend, Cpu, Element};
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

/// A backend whose operands can be made from pointers that `call.rs` has checked.
pub(crate) trait FromPointers: Backend {
    /// # Safety
    /// `pointer` is aligned and points to `len` elements of this backend's memory for 'a.
    unsafe fn floats<'a>(pointer: *const f32, len: usize) -> Self::Floats<'a>;
    /// # Safety
    /// As `floats`, and nothing else uses the elements.
    unsafe fn floats_mut<'a>(pointer: *mut f32, len: usize) -> Self::FloatsMut<'a>;
    /// # Safety
    /// `matrix` lies in this backend's memory for 'a.
    unsafe fn rows<'a, E: Element>(matrix: Matrix<*const E>) -> Self::Rows<'a, E>;
    /// # Safety
    /// As `rows`, and nothing else uses the matrix.
    unsafe fn rows_mut<'a, E: Element>(matrix: Matrix<*mut E>) -> Self::RowsMut<'a, E>;
}

/// A matrix whose pointer is aligned and not null, whose stride is at least
/// its width, and whose extent in bytes fits an `isize`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<P> {
    pub pointer: P,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<P> Matrix<P> {
    /// Strides for ndarray, which accepts only its own for a matrix without rows.
    fn shape(&self) -> ndarray::StrideShape<ndarray::Ix2> {
        let dim = (self.rows, self.cols);
        if self.rows == 0 { dim.into() } else { dim.strides((self.stride, 1)) }
    }

    /// Elements from the first to the last, the gaps between rows included.
    pub fn extent(&self) -> usize {
        self.rows.saturating_sub(1) * self.stride + if self.rows == 0 { 0 } else { self.cols }
    }
}

impl FromPointers for Cpu {
    unsafe fn floats<'a>(pointer: *const f32, len: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }
    unsafe fn floats_mut<'a>(pointer: *mut f32, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }
    unsafe fn rows<'a, E: Element>(matrix: Matrix<*const E>) -> ArrayView2<'a, E> {
        // SAFETY: the caller's promise, and a Matrix's stride is at least its width.
        unsafe { ArrayView2::from_shape_ptr(matrix.shape(), matrix.pointer) }
    }
    unsafe fn rows_mut<'a, E: Element>(matrix: Matrix<*mut E>) -> ArrayViewMut2<'a, E> {
        // SAFETY: the caller's promise, and a Matrix's rows do not overlap.
        unsafe { ArrayViewMut2::from_shape_ptr(matrix.shape(), matrix.pointer) }
    }
}
