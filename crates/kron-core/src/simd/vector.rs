//! [`Simd`]: the few vector operations that the kernels are written in.

use crate::Element;

/// One instruction set. Every method is `unsafe` for one reason beyond its
/// pointers: the CPU must have the instruction set.
pub(super) trait Simd: Copy + 'static {
    /// A register of `LANES` float32 numbers (or bit patterns).
    type V: Copy;
    /// Float32 numbers per register.
    const LANES: usize;

    unsafe fn zero() -> Self::V;
    /// Every lane = `*p`.
    unsafe fn splat(p: *const f32) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// acc + a·b.
    unsafe fn fma(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// The sum of the lanes of each register, always in the same order.
    unsafe fn sums<const R: usize>(v: [Self::V; R]) -> [f32; R];

    /// `LANES` elements, widened.
    unsafe fn load<E: Element>(p: *const E) -> Self::V;
    /// The first `n` < `LANES` elements, widened; the other lanes are zero.
    unsafe fn load_n<E: Element>(p: *const E, n: usize) -> Self::V;
    /// Rounded to nearest even.
    unsafe fn store<E: Element>(p: *mut E, v: Self::V);
    /// The first `n` < `LANES` lanes.
    unsafe fn store_n<E: Element>(p: *mut E, v: Self::V, n: usize);

    /// Numbers that lie four by four, turned: register i, lane l = `p[l·stride + i]`.
    unsafe fn turn(p: *const f32, stride: usize) -> [Self::V; 4];
    /// The way back: `p[l·stride + i]` += lane l of register i.
    unsafe fn turn_add(v: [Self::V; 4], p: *mut f32, stride: usize);

    /// A hint; `p` may point anywhere.
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

/// How a product of activations with packed factors is summed.
///
/// A lane is one float32 number, or a pair of bf16 numbers whose two products
/// are added in one instruction; `PAIR` tells which.
pub(super) trait Mac<E: Element>: Copy + 'static {
    type S: Simd;
    /// Elements of the summed dimension in one lane.
    const PAIR: usize;

    /// `LANES`·`PAIR` consecutive elements.
    unsafe fn load(p: *const E) -> V<Self, E>;
    /// The first `n` of them; the rest is zero.
    unsafe fn load_n(p: *const E, n: usize) -> V<Self, E>;
    /// `LANES` elements of each of two rows, lane by lane; with `PAIR` = 1 the second is not read.
    unsafe fn rows(p: *const E, q: *const E) -> V<Self, E>;
    /// The first `n` lanes of that; without a `q`, its half is zero.
    unsafe fn rows_n(p: *const E, q: Option<*const E>, n: usize) -> V<Self, E>;
    /// `LANES`·2 float32 columns, in two registers, as `LANES` pairs; with `PAIR` = 1, the first.
    unsafe fn columns(low: V<Self, E>, high: V<Self, E>) -> V<Self, E>;
    /// `LANES` float32 columns of two ranks as `LANES` pairs; with `PAIR` = 1, the first.
    unsafe fn ranks(low: V<Self, E>, high: V<Self, E>) -> V<Self, E>;
    /// acc + a·b, over the `PAIR` products of each lane.
    unsafe fn mac(acc: V<Self, E>, a: V<Self, E>, b: V<Self, E>) -> V<Self, E>;
}

/// The register of a [`Mac`].
pub(super) type V<K, E> = <<K as Mac<E>>::S as Simd>::V;

/// Float32 products of widened elements: every dtype, every instruction set.
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
