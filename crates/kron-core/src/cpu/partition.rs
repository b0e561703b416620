//! [`RowPartition`]: a call's rows in partitions and blocks. It depends only on the
//! shape and the number of rows, and so does the order of every sum.

use crate::KronShape;

/// Multiply-adds below which a partition is not worth a second thread (about 20 µs of one).
const MIN_WORK: usize = 1 << 20;

/// Largest number of partitions of a call; in backward, each has a gradient of its own.
const MAX_PARTS: usize = 32;

/// Elements of dY in a block of backward, which reads them twice and finds them in L2 again.
const BLOCK_ELEMENTS: usize = 64 << 10;

/// Rows divided into equal partitions, and partitions into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowPartition {
    /// Number of partitions. Each has its own scratch, and in backward its own gradient.
    pub parts: usize,
    /// Rows of every partition; the last may have fewer.
    pub part: usize,
    /// Rows of a block.
    pub block: usize,
}

impl RowPartition {
    /// Partition of forward and merge.
    pub(super) fn forward(shape: &KronShape, rows: usize) -> Self {
        let work = rows.saturating_mul(shape.d_in() + shape.d_out()).saturating_mul(shape.width());
        Self::new(rows, work / MIN_WORK, 32)
    }

    /// Partition of backward. A partition's gradient is at most 1/16 of the activations that it reads.
    pub(super) fn backward(shape: &KronShape, rows: usize) -> Self {
        let elements = rows.saturating_mul(shape.d_in() + shape.d_out());
        let work = elements.saturating_mul(2 * shape.width());
        let parts = (work / MIN_WORK).min(elements / (16 * shape.params())).min(rows / 32);
        Self::new(rows, parts, (BLOCK_ELEMENTS / shape.d_out()).clamp(8, 32))
    }

    fn new(rows: usize, parts: usize, block: usize) -> Self {
        let parts = 1 << parts.clamp(1, MAX_PARTS).ilog2();
        let part = rows.div_ceil(parts).max(1);
        Self { parts: rows.div_ceil(part).max(1), part, block: block.min(part) }
    }
}
