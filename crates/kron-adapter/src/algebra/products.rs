//! Products of small matrices in float64.

use ndarray::{Array2, ArrayView2, Zip};

/// Returns a row-major slice as a float64 matrix; the caller's shape has these sizes.
pub(super) fn widened(rows: usize, cols: usize, from: &[f32]) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| f64::from(from[i * cols + j]))
}

/// Returns ⟨x, y⟩.
pub(super) fn dot(x: ArrayView2<f64>, y: ArrayView2<f64>) -> f64 {
    Zip::from(x).and(y).fold(0.0, |sum, x, y| sum + x * y)
}

/// Returns the sum of the products of float32 numbers, in float64.
pub(super) fn dot32(x: &[f32], y: &[f32]) -> f64 {
    /// Sums that are added up at the end, so that they do not wait for each other.
    const LANES: usize = 8;
    let ((x, rest), (y, other)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            sums[lane] += f64::from(x[lane]) * f64::from(y[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().zip(other).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
}

/// Returns ⟨U·V, U'·V'⟩ = ⟨UᵀU', V·V'ᵀ⟩.
pub(super) fn product_dot(u: &Array2<f64>, v: &Array2<f64>, u2: &Array2<f64>, v2: &Array2<f64>) -> f64 {
    dot(u.t().dot(u2).view(), v.dot(&v2.t()).view())
}
