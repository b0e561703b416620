//! Products of bf16 numbers on processors with AVX-512 BF16 and no matrix unit.
//!
//! One instruction adds two products of a pair to each lane, so it does the work of two multiply-adds of float32.

use std::arch::x86_64::*;

use super::amx_panel::{PANEL, Panel, TILE};

/// Rows of x whose sums are in registers at one time, beside two vectors of columns of w.
const ROWS: usize = 8;

/// Instructions that multiply pairs of bf16 numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs(());

impl Pairs {
    /// Returns the instructions, if the processor has them.
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }

    /// Computes the square y = a·b of the first parts of two packed panels, or y += a·b.
    ///
    /// # Safety
    /// `a` and `b` are `steps` packed steps of a panel, `y` is [`PANEL`] rows of as many float32 numbers, `stride`
    /// numbers apart, and nobody else uses them.
    pub unsafe fn multiply(self, a: Panel, b: Panel, steps: usize, y: *mut f32, stride: usize, add: bool) {
        for row in (0..PANEL).step_by(ROWS) {
            // SAFETY: `self` proves that the processor has the instructions; the rows are within the square.
            unsafe { rows(a, b, row, steps, y.add(row * stride), stride, add) }
        }
    }
}

/// Computes [`ROWS`] rows of a square from row `first` of panel `a` on.
///
/// # Safety
/// As [`Pairs::multiply`], with `y` at the first row; the processor has AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows(a: Panel, b: Panel, first: usize, steps: usize, y: *mut f32, stride: usize, add: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    if add {
        for i in 0..ROWS {
            for half in 0..2 {
                // SAFETY: 16 numbers within the square.
                sums[i][half] = unsafe { _mm512_loadu_ps(y.add(i * stride + half * TILE)) };
            }
        }
    }
    for step in 0..steps {
        // SAFETY: a step has as many lines as its parts, of which the first part is the first 32.
        let (x, w) =
            unsafe { (a.lines.add(step * a.parts.lines() + first), b.lines.add(step * b.parts.lines())) };
        for pair in 0..TILE {
            // SAFETY: the lines of both tiles of w, each 64 bytes of plain bits and as much aligned.
            let w = unsafe { [w.add(pair), w.add(TILE + pair)].map(|line| line.cast::<__m512bh>().read()) };
            for i in 0..ROWS {
                // SAFETY: a line is 16 pairs; both types are 64 bytes of plain bits.
                let x: __m512bh = unsafe {
                    std::mem::transmute(_mm512_set1_epi32(x.add(i).cast::<i32>().add(pair).read()))
                };
                for half in 0..2 {
                    sums[i][half] = _mm512_dpbf16_ps(sums[i][half], x, w[half]);
                }
            }
        }
    }
    for i in 0..ROWS {
        for half in 0..2 {
            // SAFETY: 16 numbers within the square.
            unsafe { _mm512_storeu_ps(y.add(i * stride + half * TILE), sums[i][half]) };
        }
    }
}
