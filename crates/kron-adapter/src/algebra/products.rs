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

/// Returns ⟨U·V, U'·V'⟩ = ⟨UᵀU', V·V'ᵀ⟩.
pub(super) fn product_dot(u: &Array2<f64>, v: &Array2<f64>, u2: &Array2<f64>, v2: &Array2<f64>) -> f64 {
    dot(u.t().dot(u2).view(), v.dot(&v2.t()).view())
}
