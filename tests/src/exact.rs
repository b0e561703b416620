//! Problems in small integers: every product and sum is exact in float32, so
//! that a law of algebra is an equality of bits and needs no tolerance.

use kron_core::{Element, KronOp, KronShape, Theta};
use ndarray::{Array2, ArrayView2};

use crate::inputs::{Problem, uniform};

/// A problem over f32 whose operands are integers in −2…2; no dropout key.
///
/// With the factors of two that the tests take for s, sums stay below 2²⁴ for
/// layers of up to a few hundred columns.
pub fn problem(op: KronOp, rows: usize, seed: u64) -> Problem<f32> {
    let s = op.shape;
    Problem {
        op,
        theta: theta(s, seed ^ 0x7e),
        key: None,
        x: integers(rows, s.d_in(), seed ^ 0x0a),
        dy: integers(rows, s.d_out(), seed ^ 0xd0),
        pad: (seed % 3) as usize,
    }
}

/// Factors in −2…2.
///
/// # Panics
/// Never: the length is the shape's own.
pub fn theta(shape: KronShape, seed: u64) -> Theta {
    let data = integers(1, shape.params(), seed).into_raw_vec_and_offset().0;
    Theta::from_vec(shape, data).expect("the length is the shape's own")
}

/// A matrix of −2…2, exact in every dtype.
pub fn integers<E: Element>(rows: usize, cols: usize, seed: u64) -> Array2<E> {
    uniform::<f32>(rows, cols, 2.5, seed).map(|v| E::from_f32(v.round().clamp(-2.0, 2.0)))
}

/// ⟨a, b⟩ in float64: exact for integers.
pub fn dot(a: ArrayView2<f32>, b: ArrayView2<f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The same for slices.
pub fn dot_slices(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
