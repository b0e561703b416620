//! [`Simd`] and [`Mac`]: the vector operations of the kernels.

use crate::Element;

/// One instruction set. Every method is `unsafe` because the CPU must have the
/// instruction set, besides what its pointers need.
pub(super) trait Simd: Copy + 'static {
    /// A register of `LANES` float32 values (or bit patterns).
    type V: Copy;
    /// Float32 lanes of a register.
    const LANES: usize;

    unsafe fn zero() -> Self::V;
    /// Returns `*p` in every lane.
    unsafe fn splat(p: *const f32) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Returns acc + a·b.
    unsafe fn fma(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Returns the sum of the lanes of each register, always added in the same order.
    unsafe fn sums<const R: usize>(v: [Self::V; R]) -> [f32; R];

    /// Loads `LANES` elements, widened to float32.
    unsafe fn load<E: Element>(p: *const E) -> Self::V;
    /// Loads the first `n` < `LANES` elements, widened; the other lanes are zero.
    unsafe fn load_n<E: Element>(p: *const E, n: usize) -> Self::V;
    /// Stores `LANES` elements, rounded to nearest even.
    unsafe fn store<E: Element>(p: *mut E, v: Self::V);
    /// Stores the first `n` < `LANES` lanes.
    unsafe fn store_n<E: Element>(p: *mut E, v: Self::V, n: usize);

    /// Loads `LANES` rows of four values, transposed: lane l of register i is `p[l·stride + i]`.
    unsafe fn load_transposed(p: *const f32, stride: usize) -> [Self::V; 4];
    /// Adds the transpose of four registers: `p[l·stride + i]` += lane l of register i.
    unsafe fn add_transposed(v: [Self::V; 4], p: *mut f32, stride: usize);

    /// Prefetches the cache line of `p`, which may point anywhere.
    #[inline(always)]
    unsafe fn prefetch<E>(p: *const E) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults, and SSE is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast())
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }
}

/// Multiply-accumulate of activations with packed factors.
///
/// A lane is one float32 value (`PAIR` = 1), or a pair of bf16 values whose two
/// products are added in one instruction (`PAIR` = 2).
pub(super) trait Mac<E: Element>: Copy + 'static {
    type S: Simd;
    /// Elements of the summed dimension in one lane.
    const PAIR: usize;

    /// Loads `LANES`·`PAIR` consecutive elements.
    unsafe fn load(p: *const E) -> V<Self, E>;
    /// Loads the first `n` < `LANES`·`PAIR` elements; the rest is zero.
    unsafe fn load_n(p: *const E, n: usize) -> V<Self, E>;
    /// Loads `LANES` elements of each of two rows, lane by lane; with `PAIR` = 1 the second row is not read.
    unsafe fn rows(p: *const E, q: *const E) -> V<Self, E>;
    /// Loads the first `n` lanes of two rows; without a `q`, its half is zero.
    unsafe fn rows_n(p: *const E, q: Option<*const E>, n: usize) -> V<Self, E>;
    /// Pairs 2·`LANES` float32 columns of two registers; with `PAIR` = 1, returns the first register.
    unsafe fn columns(low: V<Self, E>, high: V<Self, E>) -> V<Self, E>;
    /// Pairs `LANES` float32 columns of two ranks; with `PAIR` = 1, returns the first rank.
    unsafe fn ranks(low: V<Self, E>, high: V<Self, E>) -> V<Self, E>;
    /// Returns acc + a·b, over the `PAIR` products of each lane.
    unsafe fn mac(acc: V<Self, E>, a: V<Self, E>, b: V<Self, E>) -> V<Self, E>;
}

/// Register of a [`Mac`].
pub(super) type V<K, E> = <<K as Mac<E>>::S as Simd>::V;

/// Float32 products of widened elements, for every dtype and instruction set.
#[derive(Clone, Copy)]
pub(super) struct Plain<S>(std::marker::PhantomData<S>);

impl<S: Simd, E: Element> Mac<E> for Plain<S> {
    type S = S;
    const PAIR: usize = 1;

    #[inline(always)]
    unsafe fn load(p: *const E) -> S::V {
        // SAFETY: the same contract.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const E, n: usize) -> S::V {
        // SAFETY: the same contract.
        unsafe { S::load_n(p, n) }
    }
    #[inline(always)]
    unsafe fn rows(p: *const E, _: *const E) -> S::V {
        // SAFETY: the same contract.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn rows_n(p: *const E, _: Option<*const E>, n: usize) -> S::V {
        // SAFETY: the same contract.
        unsafe { if n == S::LANES { S::load(p) } else { S::load_n(p, n) } }
    }
    #[inline(always)]
    unsafe fn columns(low: S::V, _: S::V) -> S::V {
        low
    }
    #[inline(always)]
    unsafe fn ranks(low: S::V, _: S::V) -> S::V {
        low
    }
    #[inline(always)]
    unsafe fn mac(acc: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: the same contract.
        unsafe { S::fma(acc, a, b) }
    }
}
