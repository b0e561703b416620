//! [`product`]: a float32 matrix product into memory of the caller, on the CPU.
#![allow(unsafe_code)]

use candle_core::{Result, bail};
use gemm::Parallelism;
use kron_core::Accum;
use ndarray::{ArrayView2, ArrayViewMut2};

/// Threads of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The caller's thread: the caller runs several products at once.
    One,
    /// All threads of rayon's current pool.
    All,
}

/// Computes y = x·w, or y += x·w; y is m × n, x is m × k and w is k × n, each with any strides.
///
/// ```
/// use kron_candle::{Accum, Threads, product};
/// use ndarray::{array, Array2};
///
/// # fn main() -> candle_core::Result<()> {
/// let (x, w) = (array![[1f32, 2.0]], array![[3f32, 4.0], [5.0, 6.0], [7.0, 8.0]]);
/// let mut y = Array2::zeros((1, 3));
/// product(y.view_mut(), Accum::Replace, x.view(), w.t(), Threads::One)?;
/// assert_eq!(y, array![[11.0, 17.0, 23.0]]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// The sizes do not fit.
pub fn product(
    mut y: ArrayViewMut2<f32>,
    accum: Accum,
    x: ArrayView2<f32>,
    w: ArrayView2<f32>,
    threads: Threads,
) -> Result<()> {
    let ((m, k), (inner, n)) = (x.dim(), w.dim());
    if k != inner || y.dim() != (m, n) {
        bail!("a product of {m} × {k} and {inner} × {n} is to fill {} × {}", y.nrows(), y.ncols());
    }
    let (add, parallelism) = (
        accum == Accum::Add,
        match threads {
            Threads::One => Parallelism::None,
            Threads::All => Parallelism::Rayon(0),
        },
    );
    let (&[y_rows, y_cols], &[x_rows, x_cols], &[w_rows, w_cols]) = (y.strides(), x.strides(), w.strides())
    else {
        bail!("a view of a matrix has another number of strides than two");
    };
    // SAFETY: the sizes were compared above, and a view's pointer and strides reach each of its elements; `y` is
    // borrowed exclusively, so it overlaps neither `x` nor `w`. gemm reads `y` if and only if `add` is set.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            y_cols,
            y_rows,
            add,
            x.as_ptr(),
            x_cols,
            x_rows,
            w.as_ptr(),
            w_cols,
            w_rows,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}
