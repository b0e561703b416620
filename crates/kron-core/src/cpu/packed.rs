//! Factors of θ as the kernels take them, and the sizes of packed operands.

use crate::simd::{Factor, Isa, Kernels, PackFor, Products};
use crate::{Dtype, Inner, KronShape};

/// Returns B as (r, b_out), from its b_out × r in θ; `None` for a full inner factor.
pub(super) fn b_factor<'a>(shape: &KronShape, b: &'a [f32]) -> Option<Factor<'a>> {
    match shape.inner() {
        Inner::LowRank(ranks) => {
            Some(Factor { data: b, ranks, width: shape.b_out(), rank_major: false, times: 1.0 })
        }
        Inner::Full => None,
    }
}

/// Returns C (or M) as (r, c_in), times dropout's 1/(1 − p).
pub(super) fn c_factor<'a>(shape: &KronShape, c: &'a [f32], times: f32) -> Factor<'a> {
    Factor { data: c, ranks: shape.width(), width: shape.c_in(), rank_major: true, times }
}

/// Elements of packed operands, at their largest over the dtypes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedLen(Kernels);

impl PackedLen {
    /// Sizes of an available instruction set.
    pub(super) fn new(isa: Isa) -> Self {
        // Float32 operands are the largest: pairs hold two elements per lane.
        let kernels = Kernels::new(isa, Dtype::F32, Products::Float32);
        Self(kernels.expect("a Cpu's instruction set is available"))
    }

    /// Elements of B packed for `kernel`, 0 for a full inner factor.
    pub(super) fn b(self, shape: &KronShape, kernel: PackFor) -> usize {
        shape.rank().map_or(0, |ranks| self.0.packed_len(kernel, ranks, shape.b_out()))
    }

    /// Elements of C (or M) packed for `kernel`.
    pub(super) fn c(self, shape: &KronShape, kernel: PackFor) -> usize {
        self.0.packed_len(kernel, shape.width(), shape.c_in())
    }

    /// Elements of `rows` × `ranks` scalars packed for `up`.
    pub(super) fn groups(self, rows: usize, ranks: usize) -> usize {
        self.0.groups_len(rows, ranks)
    }

    /// Elements of a gradient that `outer` sums, of a factor of `ranks` × `width`.
    pub(super) fn gradient(self, ranks: usize, width: usize) -> usize {
        ranks * width.next_multiple_of(self.0.lanes())
    }
}
