//! Chains of multiply-adds in registers, for the measurement of peak arithmetic.

use std::hint::black_box;

use super::vector::{Mac, Simd};
use crate::Element;

/// Independent sums: more than the latency of a multiply-add times its rate.
pub(super) const SUMS: usize = 12;

/// Multiply-adds of each sum per call.
pub(super) const STEPS: usize = 1 << 20;

/// Runs [`SUMS`] chains of [`STEPS`] multiply-adds.
///
/// # Safety
/// The CPU has the instruction set of `K`.
#[inline(always)]
pub(super) unsafe fn spin<K: Mac<E>, E: Element>() {
    let one = black_box([f32::from_bits(0x3f80_3f80); 1]);
    let small = black_box([f32::from_bits(0x3080_3080); 1]);
    // SAFETY: the same contract; both pointers are to one value.
    unsafe {
        let (a, b) = (K::S::splat(one.as_ptr()), K::S::splat(small.as_ptr()));
        let mut sums = [a; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = K::mac(*sum, a, b);
            }
        }
        black_box(K::S::sums(sums));
    }
}
