//! Any CPU: arrays that the compiler vectorises for the target.

use super::vector::Simd;
use crate::Element;

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::V {
        // SAFETY: the caller passes a readable value.
        [unsafe { *p }; LANES]
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    /// Rounds twice: without an FMA instruction, a fused multiply-add is a function call.
    #[inline(always)]
    unsafe fn fma(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| acc[i] + a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn sums<const R: usize>(v: [Self::V; R]) -> [f32; R] {
        v.map(|v| ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])))
    }
    #[inline(always)]
    unsafe fn load<E: Element>(p: *const E) -> Self::V {
        // SAFETY: the caller passes LANES readable elements.
        std::array::from_fn(|i| unsafe { *p.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn load_n<E: Element>(p: *const E, n: usize) -> Self::V {
        // SAFETY: the caller passes n readable elements.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) }.to_f32() } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store<E: Element>(p: *mut E, v: Self::V) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: the caller passes LANES writable elements.
            unsafe { *p.add(i) = E::from_f32(v) }
        }
    }
    #[inline(always)]
    unsafe fn store_n<E: Element>(p: *mut E, v: Self::V, n: usize) {
        for (i, v) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller passes n writable elements.
            unsafe { *p.add(i) = E::from_f32(v) }
        }
    }
    #[inline(always)]
    unsafe fn load_transposed(p: *const f32, stride: usize) -> [Self::V; 4] {
        let mut v = [[0.0; LANES]; 4];
        for l in 0..LANES {
            for i in 0..4 {
                // SAFETY: the caller passes LANES readable fours, `stride` apart.
                v[i][l] = unsafe { *p.add(l * stride + i) };
            }
        }
        v
    }
    #[inline(always)]
    unsafe fn add_transposed(v: [Self::V; 4], p: *mut f32, stride: usize) {
        for l in 0..LANES {
            for i in 0..4 {
                // SAFETY: the caller passes LANES writable fours, `stride` apart.
                unsafe { *p.add(l * stride + i) += v[i][l] }
            }
        }
    }
}
