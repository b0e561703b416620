//! Refusal of buffers that overlap where a call writes.

use kron_core::Result;

use crate::pointers::Matrix;
use crate::refuse;

/// The rule that both checks hold.
const RULE: &str = "a buffer that the call writes overlaps no other of its buffers";

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

/// Fails as [`check`] does, in time that does not grow with the square of the number of buffers.
pub(crate) fn check_many(written: &[Span], read: &[Span]) -> Result<()> {
    let is_run = |span: &&Span| span.runs <= 1;
    let matrices = |spans: &[Span]| spans.iter().filter(|span| span.runs > 1).copied().collect::<Vec<_>>();
    let (written_matrices, read_matrices) = (matrices(written), matrices(read));
    check(&written_matrices, read)?;
    for span in written.iter().filter(is_run) {
        let mut matrices = written_matrices.iter().chain(&read_matrices);
        if let Some(other) = matrices.find(|other| span.overlaps(other)) {
            return Err(refuse(span.what, format!("memory of {}", other.what), RULE));
        }
    }
    // From the left: a run starts within an earlier one, or overlaps none of them.
    let mut runs: Vec<(&Span, bool)> = written.iter().map(|span| (span, true)).collect();
    runs.extend(read.iter().map(|span| (span, false)));
    runs.retain(|(span, _)| span.runs == 1 && span.width > 0);
    runs.sort_unstable_by_key(|(span, _)| span.start);
    let end = |span: &Span| span.start.saturating_add(span.width);
    let [mut last_written, mut last]: [Option<&Span>; 2] = [None; 2];
    for (span, is_written) in runs {
        let before = if is_written { last } else { last_written };
        if let Some(other) = before.filter(|before| end(before) > span.start) {
            return Err(refuse(span.what, format!("memory of {}", other.what), RULE));
        }
        let longer = |before: &&Span| end(before) > end(span);
        if is_written && !last_written.as_ref().is_some_and(longer) {
            last_written = Some(span);
        }
        if !last.as_ref().is_some_and(longer) {
            last = Some(span);
        }
    }
    Ok(())
}

/// Fails if a buffer that a call writes overlaps another of its buffers.
pub(crate) fn check(written: &[Span], read: &[Span]) -> Result<()> {
    for (i, span) in written.iter().enumerate() {
        if let Some(other) = written[..i].iter().chain(read).find(|other| span.overlaps(other)) {
            return Err(refuse(span.what, format!("memory of {}", other.what), RULE));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    /// Buffers of any number, some empty, some of rows, in a small memory.
    fn spans(rng: &mut Pcg64, what: &'static str) -> Vec<Span> {
        let span = |rng: &mut Pcg64| {
            let runs = if rng.random_bool(0.3) { rng.random_range(0..4) } else { 1 };
            let width = rng.random_range(0..8);
            let stride = width + rng.random_range(0..6);
            Span { what, start: rng.random_range(1..120), runs, width, stride }
        };
        (0..rng.random_range(0..5)).map(|_| span(rng)).collect()
    }

    #[test]
    fn the_check_of_many_buffers_is_that_of_pairs() {
        let mut rng = Pcg64::seed_from_u64(3);
        let mut refused = 0;
        for _ in 0..100_000 {
            let (written, read) = (spans(&mut rng, "w"), spans(&mut rng, "r"));
            let (pairs, many) = (check(&written, &read), check_many(&written, &read));
            assert_eq!(pairs.is_err(), many.is_err(), "{written:?} and {read:?}: {many:?}");
            refused += usize::from(pairs.is_err());
        }
        assert!((20_000..80_000).contains(&refused), "{refused} refused");
    }

    /// A call of a hundred thousand gradients, which pairs would take minutes for.
    #[test]
    fn many_buffers_take_little_time() {
        let span = |what, start| Span { what, start, runs: 1, width: 64, stride: 64 };
        let written: Vec<Span> = (0..100_000).map(|i| span("grad", 4096 + 128 * i)).collect();
        let mut read: Vec<Span> = (0..100_000).map(|i| span("theta", 4096 + 64 + 128 * i)).collect();
        assert!(check_many(&written, &read).is_ok());
        read.push(span("theta", 4096 + 128 * 50_000 + 63));
        let said = check_many(&written, &read).expect_err("one byte").to_string();
        assert!(said.contains("has memory of"), "{said}");
    }
}
