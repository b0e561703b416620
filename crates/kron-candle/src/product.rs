//! [`product`]: a float32 matrix product into memory of the caller, on the CPU.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::time::{Duration, Instant};

use candle_core::{Result, bail};
use gemm::Parallelism;
use kron_core::{Accum, Operands, matrix_unit_product};
use ndarray::{ArrayView2, ArrayViewMut2, s};

/// Threads of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The caller's thread: the caller runs several products at once.
    One,
    /// All threads of rayon's current pool.
    All,
}

thread_local! {
    static TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the time that the calling thread has spent in products with [`Threads::All`] so far.
///
/// Those are the products with frozen matrices; a benchmark takes the difference of two calls.
pub fn product_time() -> Duration {
    TIME.get()
}

/// Computes y = x·w, or y += x·w; y is m × n, x is m × k and w is k × n, each with any strides.
///
/// Large products go to the processor's matrix unit, where there is one ([`matrix_unit_product`]); all others to the
/// vector units.
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
    y: ArrayViewMut2<f32>,
    accum: Accum,
    x: ArrayView2<f32>,
    w: ArrayView2<f32>,
    threads: Threads,
) -> Result<()> {
    product_of(Operands::Float32, y, accum, x, w, threads)
}

/// Computes [`product`] of operands that may be rounded to bf16, where a unit of the processor multiplies such numbers.
pub(crate) fn product_of(
    operands: Operands,
    y: ArrayViewMut2<f32>,
    accum: Accum,
    x: ArrayView2<f32>,
    w: ArrayView2<f32>,
    threads: Threads,
) -> Result<()> {
    if threads == Threads::One {
        return untimed(operands, y, accum, x, w, threads);
    }
    let begin = Instant::now();
    let done = untimed(operands, y, accum, x, w, threads);
    TIME.set(TIME.get() + begin.elapsed());
    done
}

/// A new matrix whose columns are the results of products, one after another; its memory is not zeroed before.
pub(crate) struct NewMatrix {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
    /// Number of columns that are written.
    filled: usize,
}

impl NewMatrix {
    /// Allocates rows × columns.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { values: Vec::with_capacity(rows * columns), rows, columns, filled: 0 }
    }

    /// Sets the next columns to x·w, on all threads.
    ///
    /// # Errors
    /// The sizes do not fit.
    pub fn push(&mut self, operands: Operands, x: ArrayView2<f32>, w: ArrayView2<f32>) -> Result<()> {
        let columns = self.filled..self.filled + w.ncols();
        if columns.end > self.columns {
            bail!("{} columns are to fill {} of {}", w.ncols(), self.columns - self.filled, self.columns);
        }
        let values = &mut self.values.spare_capacity_mut()[..self.rows * self.columns];
        let y = ArrayViewMut2::from_shape((self.rows, self.columns), values);
        let mut y = y.map_err(candle_core::Error::wrap)?;
        let y = y.slice_mut(s![.., columns.clone()]).raw_view_mut().cast::<f32>();
        // SAFETY: the memory is borrowed exclusively while `self` is. It is not read: products that replace y write
        // it alone.
        let y = unsafe { y.deref_into_view_mut() };
        product_of(operands, y, Accum::Replace, x, w, Threads::All)?;
        self.filled = columns.end;
        Ok(())
    }

    /// Returns the values, row after row.
    ///
    /// # Errors
    /// Columns are missing.
    pub fn finish(mut self) -> Result<Vec<f32>> {
        if self.filled != self.columns {
            bail!("{} of {} columns of a new matrix are filled", self.filled, self.columns);
        }
        // SAFETY: so much was allocated, and `push` filled all columns of all rows.
        unsafe { self.values.set_len(self.rows * self.columns) };
        Ok(self.values)
    }
}

fn untimed(
    operands: Operands,
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
    if matrix_unit_product(y.view_mut(), accum, x, w, operands, threads == Threads::All) {
        return Ok(());
    }
    let add = accum == Accum::Add;
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    fn matrix(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, cols), |(i, j)| ((i * 31 + j * 17 + seed * 7) % 23) as f32 - 11.0)
    }

    /// Compares with ndarray's product on whole numbers, which are exact, for views of any strides and no length.
    #[test]
    fn products_are_ndarrays() -> Result<()> {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (31, 65, 40), (130, 65, 40), (4, 3, 0), (0, 3, 2), (3, 0, 2)]
        {
            let (x, w, before) = (matrix(m, 2 * k, 1), matrix(n, k, 2), matrix(n, m, 3));
            let (x, w) = (x.slice(s![..;-1, ..;2]), w.t());
            for threads in [Threads::One, Threads::All] {
                for (accum, want) in [(Accum::Replace, x.dot(&w)), (Accum::Add, x.dot(&w) + before.t())] {
                    let mut y = before.clone();
                    product(y.view_mut().reversed_axes(), accum, x, w, threads)?;
                    assert_eq!(y.t(), want, "{m} × {n} × {k}, {accum:?}, {threads:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let (mut y, x, w) = (matrix(2, 3, 1), matrix(2, 4, 2), matrix(5, 3, 3));
        let refused = product(y.view_mut(), Accum::Replace, x.view(), w.view(), Threads::One);
        let message = refused.expect_err("4 and 5").to_string();
        assert!(message.starts_with("a product of 2 × 4 and 5 × 3 is to fill 2 × 3"), "{message}");
    }

    #[test]
    fn a_new_matrix_is_filled_by_columns() -> Result<()> {
        for (rows, inner) in [(40, 64), (3, 5), (0, 4), (4, 0)] {
            let (x, w) = (matrix(rows, inner, 1), matrix(inner, 77, 2));
            let mut y = NewMatrix::new(rows, 77);
            for columns in [0..33, 33..70, 70..77] {
                y.push(Operands::Float32, x.view(), w.slice(s![.., columns]))?;
            }
            assert_eq!(y.finish()?, x.dot(&w).into_raw_vec_and_offset().0, "{rows} × {inner}");
        }
        let (x, w) = (matrix(2, 3, 1), matrix(3, 4, 2));
        let mut y = NewMatrix::new(2, 6);
        y.push(Operands::Float32, x.view(), w.view())?;
        assert!(y.push(Operands::Float32, x.view(), w.view()).is_err());
        assert!(y.finish().is_err());
        Ok(())
    }
}
