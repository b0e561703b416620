//! The inner product of two layers of different splits, row by row: no matrix larger than a factor.
//!
//! ```text
//! row i of ΔW     s·A[i / b_out, j / c_in]·w[j mod c_in]     w: row i mod b_out of B·C
//! ```
//!
//! Between two places where a block of one or the other begins, both rows are multiples of a piece of w.

use kron_core::{KronShape, Theta};
use ndarray::{Array1, ArrayView1, Axis, Slice};

use super::factor::Factor;

/// Multiply-adds that a piece takes beside those of its numbers: two divisions and two slices.
const PIECE: u128 = 128;

/// Returns ⟨A ⊗ (B·C), A' ⊗ (B'·C')⟩ of two layers of one size.
pub fn rows_dot(ours: &Theta, theirs: &Theta) -> f64 {
    let (x, y) = (Side::new(ours), Side::new(theirs));
    let d_in = ours.shape().d_in();
    (0..ours.shape().d_out())
        .map(|row| {
            let ((a, v), (b, w)) = (x.row(row), y.row(row));
            let (mut sum, mut at) = (0.0, 0);
            while at < d_in {
                let (i, j) = (at / v.len(), at / w.len());
                let end = ((i + 1) * v.len()).min((j + 1) * w.len());
                let [ours, theirs] = [(&v, i), (&w, j)].map(|(of, block)| {
                    let first = block * of.len();
                    of.slice_axis(Axis(0), Slice::from(at - first..end - first))
                });
                sum += f64::from(a[i]) * f64::from(b[j]) * ours.dot(&theirs);
                at = end;
            }
            sum
        })
        .sum()
}

/// Returns the multiply-adds of [`rows_dot`].
pub fn rows_work(x: &KronShape, y: &KronShape) -> u128 {
    let row = |shape: &KronShape| {
        let inner = shape.rank().unwrap_or(1) as u128 * shape.c_in() as u128;
        inner + PIECE * shape.a_in() as u128
    };
    (x.d_out() as u128).saturating_mul(row(x) + row(y) + x.d_in() as u128)
}

/// One of the layers.
struct Side<'a> {
    theta: &'a Theta,
    inner: Factor<'a>,
}

impl<'a> Side<'a> {
    fn new(theta: &'a Theta) -> Self {
        Self { theta, inner: Factor::new(theta) }
    }

    /// Returns the numbers of A, a_in, and of B·C, c_in, of which row number `row` is made.
    fn row(&self, row: usize) -> (&'a [f32], Array1<f64>) {
        let shape = self.theta.shape();
        let (a_in, c_in) = (shape.a_in(), shape.c_in());
        let (block, at) = (row / shape.b_out(), row % shape.b_out());
        let inner = match &self.inner {
            Factor::Product(b, c) => b.row(at).dot(c),
            Factor::Full(_, m) => ArrayView1::from(&m[at * c_in..][..c_in]).mapv(f64::from),
        };
        (&self.theta.a()[block * a_in..][..a_in], inner)
    }
}
