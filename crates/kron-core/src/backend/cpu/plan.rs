//! How the rows of a call are cut: functions of the shape and the number of
//! rows alone, so that the order of every sum is too.

use crate::simd::{Factor, Isa, Kernels, Products, Side};
use crate::{Dtype, Inner, KronShape};

/// Columns of X that are masked at a time when there is dropout: a multiple of every step of the kernels.
pub(super) const MASKED_COLUMNS: usize = 256;

/// Multiply-adds under which a partition is not worth a second thread (about 20 µs of one).
const WORK: usize = 1 << 20;

/// The most partitions of a call: what backward pays for is one gradient each.
const MOST_PARTS: usize = 32;

/// Floats of dY that backward reads twice and wants to find in L2 again.
const BLOCK_FLOATS: usize = 64 << 10;

/// Rows cut into equal partitions, and those into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Partitions; each has its own scratch, and in backward its own gradient.
    pub parts: usize,
    /// Rows of every partition but perhaps the last.
    pub part: usize,
    /// Rows of a block.
    pub block: usize,
}

impl Cut {
    pub(super) fn forward(shape: &KronShape, rows: usize) -> Self {
        let work = rows.saturating_mul(shape.d_in() + shape.d_out()).saturating_mul(shape.width());
        Self::new(rows, work / WORK, 32)
    }

    /// Beyond the work, a partition's gradient is at most 1/16 of the activations it reads.
    pub(super) fn backward(shape: &KronShape, rows: usize) -> Self {
        let floats = rows.saturating_mul(shape.d_in() + shape.d_out());
        let work = floats.saturating_mul(2 * shape.width());
        let parts = (work / WORK).min(floats / (16 * shape.params())).min(rows / 32);
        Self::new(rows, parts, (BLOCK_FLOATS / shape.d_out()).clamp(8, 32))
    }

    fn new(rows: usize, parts: usize, block: usize) -> Self {
        let parts = 1 << parts.clamp(1, MOST_PARTS).ilog2();
        let part = rows.div_ceil(parts).max(1);
        Self { parts: rows.div_ceil(part).max(1), part, block: block.min(part) }
    }
}

/// B as (r, b_out), from its b_out × r in θ; `None` for a full inner factor.
pub(super) fn b_factor<'a>(shape: &KronShape, b: &'a [f32]) -> Option<Factor<'a>> {
    match shape.inner() {
        Inner::LowRank(ranks) => {
            Some(Factor { data: b, ranks, width: shape.b_out(), rank_major: false, times: 1.0 })
        }
        Inner::Full => None,
    }
}

/// C (or M) as (r, c_in), times dropout's 1/(1 − p).
pub(super) fn c_factor<'a>(shape: &KronShape, c: &'a [f32], times: f32) -> Factor<'a> {
    Factor { data: c, ranks: shape.width(), width: shape.c_in(), rank_major: true, times }
}

/// Numbers of both packed factors, at their largest over the dtypes.
pub(super) fn packed_len(isa: Isa, shape: &KronShape) -> usize {
    let k = float32(isa);
    let len = |ranks, width| {
        [Side::Down, Side::Up].map(|side| aligned(k.packed_len(side, ranks, width))).into_iter().max()
    };
    let b = shape.rank().and_then(|r| len(r, shape.b_out())).unwrap_or(0);
    b + len(shape.width(), shape.c_in()).unwrap_or(0)
}

/// Numbers of the groups of `rows` rows for `up`, at their largest over the dtypes.
pub(super) fn groups_len(isa: Isa, rows: usize, ranks: usize) -> usize {
    aligned(float32(isa).groups_len(rows, ranks))
}

/// The kernels whose packed operands are the largest.
fn float32(isa: Isa) -> Kernels {
    // A Cpu holds only an available instruction set.
    Kernels::new(isa, Dtype::F32, Products::Float32).expect("a Cpu's instruction set is available")
}

/// Numbers that a gradient of `outer` takes for a factor of `ranks` × `width`.
pub(super) fn outer_len(isa: Isa, ranks: usize, width: usize) -> usize {
    aligned(ranks * width.next_multiple_of(float32(isa).lanes()))
}

/// The length of a piece of an [`Arena`].
pub(super) const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Floats of a cache line.
const ALIGN: usize = 16;

/// A workspace handed out piece by piece, each on a cache line of its own.
pub(super) struct Arena<'a>(&'a mut [f32]);

impl<'a> Arena<'a> {
    /// Floats that alignment may cost.
    pub(super) const SLACK: usize = ALIGN;

    pub(super) fn new(workspace: &'a mut [f32]) -> Self {
        let skip = workspace.as_ptr().align_offset(4 * ALIGN).min(workspace.len());
        Self(&mut workspace[skip..])
    }

    /// `len` numbers with whatever is in them.
    pub(super) fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(aligned(len));
        self.0 = rest;
        &mut piece[..len]
    }
}
