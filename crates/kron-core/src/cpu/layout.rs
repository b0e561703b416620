//! Layouts of a workspace: named pieces and their offsets, computed once per call.
//!
//! `workspace_len` returns the length of the largest layout that a call can have, and a
//! call splits its workspace by such a layout, so the two cannot disagree. Sizes are the largest over the
//! dtypes; a call may use only the first part of a piece.

use super::partition::RowPartition;

/// Float32 elements of a cache line.
const LINE: usize = 16;

/// Named pieces of a buffer, one after another, each starting on a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout<const N: usize> {
    pieces: [Piece; N],
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    name: &'static str,
    start: usize,
    len: usize,
}

impl<const N: usize> Layout<N> {
    /// Lays out pieces of the given names and lengths.
    pub(super) fn new(pieces: [(&'static str, usize); N]) -> Self {
        let mut len = 0;
        let pieces = pieces.map(|(name, elements)| {
            let piece = Piece { name, start: len, len: elements };
            len += elements.next_multiple_of(LINE);
            piece
        });
        Self { pieces, len }
    }

    /// Elements of the buffer, in whole cache lines.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Splits a buffer into the pieces. The slices are checked to be disjoint.
    pub(super) fn split<'a>(&self, buffer: &'a mut [f32]) -> [&'a mut [f32]; N] {
        let (len, ranges) = (buffer.len(), self.pieces.map(|p| p.start..p.start + p.len));
        match buffer.get_disjoint_mut(ranges) {
            Ok(pieces) => pieces,
            Err(error) => panic!("{self:?} of {len} elements: {error}"),
        }
    }
}

/// The workspace of one call: `S` pieces that all partitions share, then for each
/// partition a scratch of `P` pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallLayout<const S: usize, const P: usize> {
    /// The call's rows.
    pub partition: RowPartition,
    /// Pieces of one partition's scratch.
    pub scratch: Layout<P>,
    shared: Layout<S>,
}

impl<const S: usize, const P: usize> CallLayout<S, P> {
    /// Lays out the shared pieces and the pieces of a partition's scratch.
    pub(super) fn new(
        partition: RowPartition,
        shared: [(&'static str, usize); S],
        scratch: [(&'static str, usize); P],
    ) -> Self {
        Self { partition, scratch: Layout::new(scratch), shared: Layout::new(shared) }
    }

    /// Elements of the workspace; it may start anywhere in a cache line.
    pub(super) fn workspace_len(&self) -> usize {
        self.shared.len() + self.partition.parts * self.scratch_len() + (LINE - 1)
    }

    /// Elements of a partition's scratch. Never 0, so that a slice divides into scratches.
    pub(super) fn scratch_len(&self) -> usize {
        self.scratch.len().max(LINE)
    }

    /// Splits a workspace into the shared pieces and the scratch of all partitions.
    pub(super) fn split<'a>(&self, workspace: &'a mut [f32]) -> ([&'a mut [f32]; S], &'a mut [f32]) {
        let skip = workspace.as_ptr().align_offset(4 * LINE).min(LINE - 1);
        let (shared, rest) = workspace[skip..].split_at_mut(self.shared.len());
        (self.shared.split(shared), &mut rest[..self.partition.parts * self.scratch_len()])
    }
}

#[cfg(test)]
impl<const N: usize> Layout<N> {
    /// Names and ranges of the pieces in a buffer that starts at `start`.
    pub(super) fn ranges(
        &self,
        start: usize,
    ) -> impl Iterator<Item = (&'static str, std::ops::Range<usize>)> {
        self.pieces.into_iter().map(move |p| (p.name, start + p.start..start + p.start + p.len))
    }
}

#[cfg(test)]
impl<const S: usize, const P: usize> CallLayout<S, P> {
    /// Names and ranges of all pieces in a workspace that starts on a cache line.
    pub(super) fn ranges(&self) -> Vec<(&'static str, std::ops::Range<usize>)> {
        let scratch = |i| self.scratch.ranges(self.shared.len() + i * self.scratch_len());
        self.shared.ranges(0).chain((0..self.partition.parts).flat_map(scratch)).collect()
    }
}
