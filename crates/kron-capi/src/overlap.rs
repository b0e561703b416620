//! Refusal of buffers that overlap where a call writes.

use kron_core::Result;

use crate::pointers::Matrix;
use crate::refuse;

/// Bytes of a buffer: runs of equal width, `stride` apart. Gaps between rows are not part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    what: &'static str,
    start: usize,
    runs: usize,
    width: usize,
    stride: usize,
}

impl Span {
    /// The rows of a matrix.
    pub(crate) fn rows<E>(what: &'static str, matrix: &Matrix<*const E>) -> Self {
        let bytes = |elements: usize| elements.saturating_mul(size_of::<E>());
        let Matrix { pointer, rows, cols, stride } = *matrix;
        Self { what, start: pointer.addr(), runs: rows, width: bytes(cols), stride: bytes(stride) }
    }

    /// One run of `len` elements.
    pub(crate) fn floats(what: &'static str, pointer: *const f32, len: usize) -> Self {
        Self::rows(what, &Matrix { pointer, rows: 1, cols: len, stride: len })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (few, many) = if self.runs <= other.runs { (self, other) } else { (other, self) };
        if few.stride == many.stride || few.runs <= 1 {
            return few.meets(many, many.stride);
        }
        // Runs at two distances have no closed form; matrices of one call rarely interleave so.
        let run = |i| Self { start: few.start.saturating_add(i * few.stride), runs: 1, ..*few };
        few.extent_meets(many) && (0..few.runs).any(|i| run(i).meets(many, many.stride))
    }

    /// Returns true if the bytes from the first to the last, gaps included, overlap.
    fn extent_meets(&self, other: &Self) -> bool {
        let end = |s: &Self| s.start as i128 + (s.runs as i128 - 1) * s.stride as i128 + s.width as i128;
        end(self) > other.start as i128 && end(other) > self.start as i128
    }

    /// Returns true if a run of `self` overlaps a run of `other`, where both are `stride` apart: for
    /// a k = j − i, −width of other < start of other − start of self + k·stride < width of self.
    fn meets(&self, other: &Self, stride: usize) -> bool {
        if [self.runs, self.width, other.runs, other.width].contains(&0) {
            return false;
        }
        let [own_runs, own_width, runs, width] =
            [self.runs, self.width, other.runs, other.width].map(|v| v as i128);
        let (apart, stride) = (other.start as i128 - self.start as i128, stride as i128);
        let first = (-width - apart).div_euclid(stride) + 1;
        let k = first.max(1 - own_runs);
        k < runs && apart + k * stride < own_width
    }
}

/// Fails if a buffer that a call writes overlaps another of its buffers.
pub(crate) fn check(written: &[Span], read: &[Span]) -> Result<()> {
    for (i, span) in written.iter().enumerate() {
        if let Some(other) = written[..i].iter().chain(read).find(|other| span.overlaps(other)) {
            let rule = "a buffer that the call writes overlaps no other of its buffers";
            return Err(refuse(span.what, format!("memory of {}", other.what), rule));
        }
    }
    Ok(())
}
