//! One interface to the three GEMM crates: C (+)= alpha·A·B in float32.

use faer::linalg::matmul::matmul;
use faer::{MatMut as FaerMut, MatRef as FaerRef, Par};
use kron_core::Accum;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder, linalg::general_mat_mul};
use serde::Serialize;

/// A crate that multiplies float32 matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GemmCrate {
    /// The crate `gemm`.
    Gemm,
    /// The crate `matrixmultiply`, through ndarray; one thread.
    MatrixMultiply,
    /// The crate `faer`.
    Faer,
}

impl GemmCrate {
    /// All crates.
    pub const ALL: [GemmCrate; 3] = [GemmCrate::Gemm, GemmCrate::MatrixMultiply, GemmCrate::Faer];

    /// Returns true if the crate can use more than one thread by itself.
    pub const fn threads(self) -> bool {
        !matches!(self, GemmCrate::MatrixMultiply)
    }

    /// Returns the crate's name.
    pub const fn name(self) -> &'static str {
        match self {
            GemmCrate::Gemm => "gemm",
            GemmCrate::MatrixMultiply => "matrixmultiply",
            GemmCrate::Faer => "faer",
        }
    }
}

/// A matrix of rows × cols elements whose rows start `stride` apart; `transposed` stands for its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
    transposed: bool,
}

impl<'a> Mat<'a> {
    /// Makes a matrix of rows × cols elements without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Makes a matrix of rows × cols elements whose rows start `stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data: &data[..span(rows, cols, stride)], rows, cols, stride, transposed: false }
    }

    /// Returns the transpose, without a copy.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn dim(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn faer(&self) -> FaerRef<'a, f32> {
        let m = FaerRef::from_column_major_slice_with_stride(self.data, self.cols, self.rows, self.stride);
        if self.transposed { m } else { m.transpose() }
    }

    /// Returns the distance between rows, and between columns.
    fn strides(&self) -> (isize, isize) {
        if self.transposed { (1, self.stride as isize) } else { (self.stride as isize, 1) }
    }

    fn ndarray(&self) -> ArrayView2<'a, f32> {
        let shape = (self.rows, self.cols).strides((self.stride, 1));
        let m = ArrayView2::from_shape(shape, self.data).expect("a slice of the span");
        if self.transposed { m.reversed_axes() } else { m }
    }
}

/// A row-major matrix to write.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> MatMut<'a> {
    /// Makes a matrix of rows × cols elements without gaps.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Makes a matrix of rows × cols elements whose rows start `stride` apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data: &mut data[..span(rows, cols, stride)], rows, cols, stride }
    }
}

const fn span(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// Computes C (+)= alpha·A·B on up to `threads` threads of rayon's current pool.
pub fn product(library: GemmCrate, threads: usize, alpha: f32, a: Mat, b: Mat, accum: Accum, c: MatMut) {
    let ((m, k), (k2, n)) = (a.dim(), b.dim());
    assert_eq!((m, n, k), (c.rows, c.cols, k2), "sizes of a product");
    match library {
        GemmCrate::Gemm => by_gemm(threads, alpha, a, b, accum, c),
        GemmCrate::MatrixMultiply => {
            let shape = (m, n).strides((c.stride, 1));
            let mut out = ArrayViewMut2::from_shape(shape, c.data).expect("a slice of the span");
            general_mat_mul(alpha, &a.ndarray(), &b.ndarray(), beta(accum), &mut out);
        }
        GemmCrate::Faer => {
            let par = if threads > 1 { Par::rayon(threads) } else { Par::Seq };
            // The transpose of a column-major view: faer 0.24.4's `from_row_major_slice_with_stride_mut`
            // hands its two strides over in the wrong order, and the product then writes out of bounds.
            let out =
                FaerMut::from_column_major_slice_with_stride_mut(c.data, n, m, c.stride).transpose_mut();
            let accum = match accum {
                Accum::Replace => faer::Accum::Replace,
                Accum::Add => faer::Accum::Add,
            };
            matmul(out, accum, a.faer(), b.faer(), alpha, par);
        }
    }
}

const fn beta(accum: Accum) -> f32 {
    match accum {
        Accum::Replace => 0.0,
        Accum::Add => 1.0,
    }
}

// The crate `gemm` has no safe interface, and a comparison without it would spare the rival.
#[allow(unsafe_code)]
fn by_gemm(threads: usize, alpha: f32, a: Mat, b: Mat, accum: Accum, c: MatMut) {
    let ((a_rs, a_cs), (b_rs, b_cs)) = (a.strides(), b.strides());
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let k = a.dim().1;
    // SAFETY: `span` cut each slice to exactly the elements that its sizes and strides reach, `product`
    // compared the sizes, and `c` is borrowed for writing, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            k,
            c.data.as_mut_ptr(),
            1,
            c.stride as isize,
            accum == Accum::Add,
            a.data.as_ptr(),
            a_cs,
            a_rs,
            b.data.as_ptr(),
            b_cs,
            b_rs,
            beta(accum),
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that an adapter multiplies, each pairwise different, with gaps between rows.
    #[test]
    fn every_library_agrees_with_a_plain_loop_and_writes_nothing_else() {
        for (m, n, k) in [(1, 4099, 8), (3, 70, 129), (65, 8, 300), (131, 8, 1), (17, 1031, 2), (8, 517, 67)]
        {
            for (a_t, b_t) in [(false, false), (true, false), (false, true)] {
                let at = |rows: usize, cols: usize, seed: usize| -> (Vec<f32>, usize) {
                    let stride = cols + 5;
                    (
                        (0..rows * stride).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).collect(),
                        stride,
                    )
                };
                let (a, a_s) = if a_t { at(k, m, 1) } else { at(m, k, 1) };
                let (b, b_s) = if b_t { at(n, k, 2) } else { at(k, n, 2) };
                let a = if a_t { Mat::strided(&a, k, m, a_s).t() } else { Mat::strided(&a, m, k, a_s) };
                let b = if b_t { Mat::strided(&b, n, k, b_s).t() } else { Mat::strided(&b, k, n, b_s) };
                let exact = a.ndarray().mapv(f64::from).dot(&b.ndarray().mapv(f64::from));
                for library in GemmCrate::ALL {
                    for (accum, threads) in [(Accum::Replace, 1), (Accum::Add, 2)] {
                        let stride = n + 3;
                        let mut c = vec![0.5f32; m * stride];
                        product(library, threads, 2.0, a, b, accum, MatMut::strided(&mut c, m, n, stride));
                        for (i, row) in c.chunks(stride).enumerate() {
                            for (j, &got) in row[..n].iter().enumerate() {
                                let want = 2.0 * exact[(i, j)] + f64::from(0.5 * beta(accum));
                                // |a|, |b| ≤ 1: k products and k sums, each rounded.
                                let bound = 4.0 * (k * k) as f64 * f64::from(f32::EPSILON) + 1e-6;
                                assert!((f64::from(got) - want).abs() < bound, "{library:?} {m}×{n}×{k}");
                            }
                            assert_eq!(row[n..], [0.5; 3], "{library:?} wrote between the rows");
                        }
                    }
                }
            }
        }
    }
}
