//! Raw pointers as the operands of a backend, and which backend a call is for.

use kron_core::{Backend, Cpu, Element, KronOp, Pass, Result};
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

use crate::device;
use crate::types::KronDevice;

/// A backend whose operands can be made of pointers that [`crate::call`] has checked.
pub(crate) trait Memory: Backend {
    /// # Safety
    /// `pointer` is aligned and names `len` numbers of this backend's memory for 'a.
    unsafe fn floats<'a>(pointer: *const f32, len: usize) -> Self::Floats<'a>;
    /// # Safety
    /// As `floats`, and nothing else uses the numbers.
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
    /// ndarray takes no strides other than its own for a matrix without rows.
    fn shape(&self) -> ndarray::StrideShape<ndarray::Ix2> {
        let dim = (self.rows, self.cols);
        if self.rows == 0 { dim.into() } else { dim.strides((self.stride, 1)) }
    }

    /// Elements from the first to the last.
    #[cfg(any(feature = "cuda", feature = "emulate"))]
    pub fn extent(&self) -> usize {
        self.rows.saturating_sub(1) * self.stride + if self.rows == 0 { 0 } else { self.cols }
    }
}

impl Memory for Cpu {
    unsafe fn floats<'a>(pointer: *const f32, len: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }
    unsafe fn floats_mut<'a>(pointer: *mut f32, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }
    unsafe fn rows<'a, E: Element>(matrix: Matrix<*const E>) -> ArrayView2<'a, E> {
        // SAFETY: the caller's promise, and what a Matrix is.
        unsafe { ArrayView2::from_shape_ptr(matrix.shape(), matrix.pointer) }
    }
    unsafe fn rows_mut<'a, E: Element>(matrix: Matrix<*mut E>) -> ArrayViewMut2<'a, E> {
        // SAFETY: the caller's promise, and what a Matrix is: its rows do not overlap.
        unsafe { ArrayViewMut2::from_shape_ptr(matrix.shape(), matrix.pointer) }
    }
}

/// Something that a call does, on whichever backend it is for.
pub(crate) trait Job {
    fn on<M: Memory>(self, backend: &M) -> Result<()>;
}

/// Does the job where `device` says.
pub(crate) fn dispatch(device: Option<&KronDevice>, job: impl Job) -> Result<()> {
    match device {
        None => job.on(&Cpu::new()),
        Some(device) => device::dispatch(device, job),
    }
}

pub(crate) fn workspace_len(
    device: Option<&KronDevice>,
    op: &KronOp,
    pass: Pass,
    rows: usize,
) -> Result<usize> {
    struct Ask<'a>(&'a KronOp, Pass, usize, &'a mut usize);
    impl Job for Ask<'_> {
        fn on<M: Memory>(self, backend: &M) -> Result<()> {
            *self.3 = backend.workspace_len(self.0, self.1, self.2);
            Ok(())
        }
    }
    let mut len = 0;
    dispatch(device, Ask(op, pass, rows, &mut len))?;
    Ok(len)
}
