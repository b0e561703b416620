//! Loops that the compiler turns into vector instructions.

use pulp::{Simd, WithSimd};

/// Number of partial results, which vector instructions compute in parallel.
const LANES: usize = 16;

/// Evaluates an expression in the form that was compiled for the widest vectors of the processor.
///
/// The compiler joins no product and sum, and the order of sums is written down: results have the same bits on every
/// processor. What the expression calls has to be inlined, or it is compiled for the least processor; it may not move.
macro_rules! vectorised {
    ($value:expr) => {
        pulp::Arch::new().dispatch($crate::models::ops::vectors::Inlined(
            #[inline(always)]
            || $value,
        ))
    };
}
pub(super) use vectorised;

/// A closure whose body is inlined into each of its forms: calls of `FnOnce` have a function between.
pub(super) struct Inlined<F>(pub F);

impl<R, F: FnMut() -> R> WithSimd for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Returns the sum of numbers.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for part in whole {
        sums.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Returns the sum of the products of two slices of equal length.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Returns the greatest number, at least `f32::MIN`; NaN does not count.
#[inline(always)]
pub(super) fn greatest(values: &[f32]) -> f32 {
    let mut greatest = [f32::MIN; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for part in whole {
        for (greatest, value) in greatest.iter_mut().zip(part) {
            *greatest = if value > greatest { *value } else { *greatest };
        }
    }
    greatest.iter().chain(rest).copied().fold(f32::MIN, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with float64 on lengths about a number of lanes, inside the dispatch and outside, whose bits are equal.
    #[test]
    fn reductions_are_the_plain_ones() {
        for len in [0, 1, 15, 16, 17, 31, 33, 100] {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0 - 4.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).cos()).collect();
            let plain = [sum(&a), dot(&a, &b), greatest(&a)];
            assert_eq!(
                vectorised!([sum(&a), dot(&a, &b), greatest(&a)]).map(f32::to_bits),
                plain.map(f32::to_bits)
            );
            let wide = |values: &[f32]| -> Vec<f64> { values.iter().copied().map(f64::from).collect() };
            let (a64, b64) = (wide(&a), wide(&b));
            let size: f64 = a64.iter().map(|a| a.abs()).sum();
            let bound = (len as f64 + 1.0) * f64::from(f32::EPSILON) * size;
            assert!((f64::from(plain[0]) - a64.iter().sum::<f64>()).abs() <= bound, "{len}");
            let exact: f64 = a64.iter().zip(&b64).map(|(a, b)| a * b).sum();
            assert!((f64::from(plain[1]) - exact).abs() <= bound, "{len}");
            assert_eq!(plain[2], a.iter().copied().fold(f32::MIN, f32::max), "{len}");
        }
        let mut values = vec![-1.0; 40];
        (values[3], values[35], values[20]) = (f32::NAN, f32::NAN, 2.0);
        assert_eq!(greatest(&values), 2.0);
    }
}
