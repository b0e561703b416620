//! [`RowPartition`]: a call's rows in partitions and blocks. It depends only on the
//! shape and the number of rows, and so does the order of every sum.

use crate::{KronShape, Pass};

/// Multiply-adds below which a partition is not worth a second thread (about 20 µs of one).
const MIN_WORK: usize = 1 << 20;

/// Largest number of partitions of a call; in backward, each has a gradient of its own.
pub(super) const MAX_PARTS: usize = 32;

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

/// The passes that share a rule of partition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Partitioned {
    /// Forward and merge.
    Forward,
    /// Backward. A partition's gradient is at most 1/16 of the activations that it reads.
    Backward,
}

impl RowPartition {
    /// Partition of a call over `rows` rows.
    pub(super) fn new(pass: Partitioned, shape: &KronShape, rows: usize) -> Self {
        Self::of_group(pass, std::iter::once(shape), rows)
    }

    /// Partition of a call over several adapters; that of one of them if all have one shape.
    pub(super) fn of_group<'s>(
        pass: Partitioned,
        shapes: impl Iterator<Item = &'s KronShape> + Clone,
        rows: usize,
    ) -> Self {
        let part = rows.div_ceil(pass.group_parts(shapes.clone(), rows)).max(1);
        let block = shapes.map(|shape| pass.max_block(shape)).min().unwrap_or(1);
        Self { parts: rows.div_ceil(part).max(1), part, block: block.min(part) }
    }

    /// Returns partitions that bound those of all calls over at most `rows` rows: one of them has
    /// at least as many parts, and blocks of at least as many rows.
    pub(super) fn bounds(pass: Partitioned, shape: &KronShape, rows: usize) -> impl Iterator<Item = Self> {
        Self::group_bounds(pass, std::iter::once(shape), rows)
    }

    /// Returns bounds of the partitions of calls over several adapters.
    pub(super) fn group_bounds<'s>(
        pass: Partitioned,
        shapes: impl Iterator<Item = &'s KronShape> + Clone,
        rows: usize,
    ) -> impl Iterator<Item = Self> {
        let block = shapes.clone().map(|shape| pass.max_block(shape)).min().unwrap_or(1);
        let max_parts = move |rows| pass.group_parts(shapes.clone(), rows);
        let (powers, most) = ((0..=MAX_PARTS.ilog2()).map(|k| 1 << k), max_parts(rows));
        powers.take_while(move |&parts| parts <= most).map(move |parts| {
            // The last call with as many parts has the largest.
            let last = last(rows, |n| max_parts(n) <= parts);
            let part = last.div_ceil(parts).max(1);
            Self { parts: parts.min(last.max(1)), part, block: block.min(part) }
        })
    }
}

impl Partitioned {
    /// Rule of a pass.
    pub(super) const fn of(pass: Pass) -> Self {
        match pass {
            Pass::Forward | Pass::Merge => Self::Forward,
            Pass::Backward { .. } => Self::Backward,
        }
    }

    /// Largest number of partitions of a call: a power of two that never falls as the rows grow.
    fn max_parts(self, shape: &KronShape, rows: usize) -> usize {
        let elements = rows.saturating_mul(shape.d_in() + shape.d_out());
        let parts = match self {
            Self::Forward => elements.saturating_mul(shape.width()) / MIN_WORK,
            Self::Backward => {
                let work = elements.saturating_mul(2 * shape.width());
                (work / MIN_WORK).min(elements / (16 * shape.params())).min(rows / 32)
            }
        };
        1 << parts.clamp(1, MAX_PARTS).ilog2()
    }

    /// Largest number of partitions of a call over several adapters: in backward, that of the adapter
    /// whose gradient is the largest beside its activations.
    fn group_parts<'s>(self, shapes: impl Iterator<Item = &'s KronShape>, rows: usize) -> usize {
        let parts = shapes.map(|shape| self.max_parts(shape, rows));
        match self {
            Self::Forward => parts.max(),
            Self::Backward => parts.min(),
        }
        .unwrap_or(1)
    }

    /// Largest number of rows of a block.
    fn max_block(self, shape: &KronShape) -> usize {
        match self {
            Self::Forward => 32,
            Self::Backward => (BLOCK_ELEMENTS / shape.d_out()).clamp(8, 32),
        }
    }
}

/// Returns the last of 0 to `rows` that `holds`, which holds at 0 and once false stays false.
fn last(rows: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut last, mut beyond) = (0, rows.saturating_add(1));
    while beyond - last > 1 {
        let middle = last + (beyond - last) / 2;
        if holds(middle) { last = middle } else { beyond = middle }
    }
    last
}
