//! The base layer, which a golden folder defines by formulas:
//!
//! ```text
//! W[o, i] = ((131·o + 71·i) mod 257 − 128) / 4096      bias[o] = ((37·o) mod 257 − 128) / 256
//! ```
//!
//! W depends on o and i only modulo 257. A product with W therefore needs only a 257 × 257 matrix,
//! however large the layer: fold the operand, multiply, spread.

use ndarray::{Array2, ArrayView2};

/// Period of the formulas.
const PERIOD: usize = 257;

/// Returns W\[o, i\], exactly.
pub fn weight(o: usize, i: usize) -> f64 {
    (((131 * (o % PERIOD) + 71 * (i % PERIOD)) % PERIOD) as f64 - 128.0) / 4096.0
}

/// Returns bias\[o\], exactly.
fn bias(o: usize) -> f64 {
    ((37 * (o % PERIOD) % PERIOD) as f64 - 128.0) / 256.0
}

/// Returns X·Wᵀ (+ bias), n × d_out.
pub fn forward(x: ArrayView2<f64>, d_out: usize, with_bias: bool) -> Array2<f64> {
    let mut y = spread(&fold(x).dot(&tile().t()), d_out);
    if with_bias {
        y.indexed_iter_mut().for_each(|((_, o), y)| *y += bias(o));
    }
    y
}

/// Returns dY·W, n × d_in.
pub fn backward(dy: ArrayView2<f64>, d_in: usize) -> Array2<f64> {
    spread(&fold(dy).dot(&tile()), d_in)
}

/// Returns one period of W, 257 × 257.
fn tile() -> Array2<f64> {
    Array2::from_shape_fn((PERIOD, PERIOD), |(o, i)| weight(o, i))
}

/// Sums the columns whose indices are equal modulo 257, n × 257.
fn fold(x: ArrayView2<f64>) -> Array2<f64> {
    let mut folded = Array2::zeros((x.nrows(), PERIOD));
    x.indexed_iter().for_each(|((n, i), v)| folded[(n, i % PERIOD)] += v);
    folded
}

/// Repeats the 257 columns up to `width`.
fn spread(y: &Array2<f64>, width: usize) -> Array2<f64> {
    Array2::from_shape_fn((y.nrows(), width), |(n, o)| y[(n, o % PERIOD)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the formulas of a golden folder, written without the period.
    #[test]
    fn products_are_those_of_the_stated_formulas() {
        let (d_out, d_in) = (600, 313);
        let w = |o: usize, i: usize| (((131 * o + 71 * i) % 257) as f64 - 128.0) / 4096.0;
        let b = |o: usize| (((37 * o) % 257) as f64 - 128.0) / 256.0;
        let x = Array2::from_shape_fn((3, d_in), |(n, i)| ((n * 7 + i * 5) % 11) as f64 - 4.0);
        let dy = Array2::from_shape_fn((3, d_out), |(n, o)| ((n * 3 + o * 2) % 13) as f64 - 5.0);
        let (y, dx) = (forward(x.view(), d_out, true), backward(dy.view(), d_in));
        for n in 0..3 {
            for o in 0..d_out {
                let want = b(o) + (0..d_in).map(|i| x[(n, i)] * w(o, i)).sum::<f64>();
                assert!((y[(n, o)] - want).abs() < 1e-9, "y[{n}, {o}]: {} and {want}", y[(n, o)]);
            }
            for i in 0..d_in {
                let want = (0..d_out).map(|o| dy[(n, o)] * w(o, i)).sum::<f64>();
                assert!((dx[(n, i)] - want).abs() < 1e-9, "dx[{n}, {i}]: {} and {want}", dx[(n, i)]);
            }
        }
    }
}
