//! Panels of the matrix unit's operands: 32 rows of x, or 32 columns of w, split into bf16 numbers.
//!
//! A panel holds, for each 32 positions of the inner dimension, the parts of two tiles; a tile is 16 rows of 16 pairs.
//! A pair is positions k and k + 16, so that both operands are split lane by lane.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use ndarray::{ArrayView2, Axis};

use crate::Operands;

/// Rows or columns of a panel, and of the square of y that a step computes.
pub(crate) const PANEL: usize = 32;
/// Positions of the inner dimension of a step.
pub(crate) const STEP: usize = 32;
/// Rows or columns of a tile, lanes of a vector, and pairs of a tile's row.
pub(crate) const TILE: usize = 16;
/// Parts of a number.
const PARTS: usize = 3;
/// Lines of one part of a panel's step.
const PART: usize = 2 * TILE;
/// Lines of a panel's step, at most.
pub(crate) const LINES: usize = PARTS * PART;

/// 16 pairs of bf16 numbers: a row of a tile, and a line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line([u32; TILE]);

/// Packed rows of x, or columns of w.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub lines: *const Line,
    pub parts: Parts,
}

/// Parts of the numbers of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// The first: every number is a bf16 number.
    One,
    /// All three.
    Three,
}

impl Parts {
    /// Returns the lines of a step.
    pub const fn lines(self) -> usize {
        match self {
            Self::One => PART,
            Self::Three => LINES,
        }
    }
}

/// How a number is split into parts, whose sum it is in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// Into the nearest bf16 number and what is left: the later parts are as small as they can be, so that their products
    /// may be left out.
    Nearest,
    /// Into its bits from the highest on, in fewer instructions, where all products of parts are computed.
    Bits,
}

/// A matrix to be packed: its outer dimension is that of the panels, its inner one is summed over.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    at: *const f32,
    /// Numbers from one position to the next.
    outer: isize,
    inner: isize,
    /// Positions that exist; the others are zeros.
    outer_len: usize,
    inner_len: usize,
    /// True for the rows of x, false for the columns of w.
    rows: bool,
    operands: Operands,
    /// How numbers of three parts are split.
    split: Split,
    of: PhantomData<&'a f32>,
}

// SAFETY: the numbers are borrowed and only read.
unsafe impl Sync for Source<'_> {}

impl<'a> Source<'a> {
    /// Takes the rows of x, or the transposed w.
    pub fn new(matrix: ArrayView2<'a, f32>, rows: bool, operands: Operands) -> Self {
        let (outer_len, inner_len) = matrix.dim();
        let (outer, inner) = (matrix.stride_of(Axis(0)), matrix.stride_of(Axis(1)));
        Self {
            at: matrix.as_ptr(),
            outer,
            inner,
            outer_len,
            inner_len,
            rows,
            operands,
            split: Split::Nearest,
            of: PhantomData,
        }
    }

    /// Sets how numbers of three parts are split.
    pub fn with_split(self, split: Split) -> Self {
        Self { split, ..self }
    }

    /// Packs the steps of a panel, and returns the parts that it has.
    ///
    /// # Safety
    /// The processor has AVX-512 BW.
    pub unsafe fn pack(&self, outer: usize, inner: Range<usize>, to: &mut [MaybeUninit<Line>]) -> Parts {
        let packed = |parts: Parts, to: &mut [MaybeUninit<Line>]| {
            let mut steps = inner.clone().step_by(STEP).zip(to.chunks_exact_mut(parts.lines()));
            // SAFETY: as promised by the caller.
            steps.all(|(inner, lines)| unsafe { self.pack_step(outer, inner, parts, lines) })
        };
        if packed(Parts::One, to) {
            return Parts::One;
        }
        packed(Parts::Three, to);
        Parts::Three
    }

    /// Packs one step of a panel, and returns false if its numbers have more parts.
    ///
    /// # Safety
    /// As [`Source::pack`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_step(
        &self,
        outer: usize,
        inner: usize,
        parts: Parts,
        to: &mut [MaybeUninit<Line>],
    ) -> bool {
        let mut all = _mm512_setzero_si512();
        for tile in 0..2 {
            let first = outer + tile * TILE;
            // SAFETY: blocks beyond the matrix are not read.
            let (low, high) = unsafe { (self.block(first, inner), self.block(first, inner + TILE)) };
            for row in 0..TILE {
                let at = tile * TILE + row;
                let (low, high) = (low[row], high[row]);
                if parts == Parts::One {
                    let (low, high) = match self.operands {
                        Operands::Float32 => (_mm512_castps_si512(low), _mm512_castps_si512(high)),
                        Operands::Bf16 => (nearest(low), nearest(high)),
                    };
                    all = _mm512_or_si512(all, _mm512_or_si512(low, high));
                    store(pairs(low, high), &mut to[at]);
                    continue;
                }
                let parts = match self.split {
                    Split::Nearest => split::<true>(low, high),
                    Split::Bits => split::<false>(low, high),
                };
                for (part, pairs) in parts.into_iter().enumerate() {
                    store(pairs, &mut to[part * PART + at]);
                }
            }
        }
        parts == Parts::Three || _mm512_test_epi32_mask(all, _mm512_set1_epi32(0xffff)) == 0
    }

    /// Returns a block of 16 × 16 numbers: rows of x, or rows of w.
    ///
    /// # Safety
    /// As [`Source::pack`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block(&self, outer: usize, inner: usize) -> [__m512; TILE] {
        let left = |len: usize, first: usize| len.saturating_sub(first).min(TILE);
        let (outers, inners) = (left(self.outer_len, outer), left(self.inner_len, inner));
        if outers == 0 || inners == 0 {
            return [_mm512_setzero_ps(); TILE];
        }
        // SAFETY: both positions exist.
        let at = unsafe { self.at.offset(outer as isize * self.outer + inner as isize * self.inner) };
        let (outer, inner) = ((self.outer, outers), (self.inner, inners));
        let ((row, rows), (lane, lanes)) = if self.rows { (outer, inner) } else { (inner, outer) };
        // SAFETY: as many rows, and as many numbers in each, exist from there on.
        unsafe {
            if lane == 1 {
                load(at, row, rows, lanes)
            } else if row == 1 {
                transposed(load(at, lane, lanes, rows))
            } else {
                gathered(at, (row, rows), (lane, lanes))
            }
        }
    }
}

/// Loads rows of contiguous numbers; the others are zeros.
#[target_feature(enable = "avx512f")]
unsafe fn load(at: *const f32, stride: isize, rows: usize, lanes: usize) -> [__m512; TILE] {
    let mask = ((1u32 << lanes) - 1) as u16;
    let mut block = [_mm512_setzero_ps(); TILE];
    for (row, to) in block.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller's row, of which the mask reads `lanes` numbers.
        *to = unsafe { _mm512_maskz_loadu_ps(mask, at.offset(row as isize * stride)) };
    }
    block
}

/// Loads numbers of any strides; the others are zeros.
#[target_feature(enable = "avx512f")]
unsafe fn gathered(
    at: *const f32,
    (row, rows): (isize, usize),
    (lane, lanes): (isize, usize),
) -> [__m512; TILE] {
    let mut block = [_mm512_setzero_ps(); TILE];
    for (i, to) in block.iter_mut().enumerate().take(rows) {
        let mut numbers = [0.0; TILE];
        for (j, number) in numbers.iter_mut().enumerate().take(lanes) {
            // SAFETY: the caller's element.
            *number = unsafe { *at.offset(i as isize * row + j as isize * lane) };
        }
        // SAFETY: 16 numbers.
        *to = unsafe { _mm512_loadu_ps(numbers.as_ptr()) };
    }
    block
}

/// Transposes a block.
#[target_feature(enable = "avx512f")]
fn transposed(r: [__m512; TILE]) -> [__m512; TILE] {
    let (mut a, mut b, mut t) = (r, r, r);
    for i in (0..TILE).step_by(2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for i in (0..TILE).step_by(4) {
        for half in 0..2 {
            let (x, y) = (_mm512_castps_pd(a[i + half]), _mm512_castps_pd(a[i + half + 2]));
            b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    // b[4·i + c] holds in its quarter l the numbers of column 4·l + c in rows 4·i to 4·i + 3.
    for c in 0..4 {
        let (x, y) = ((b[c], b[4 + c]), (b[8 + c], b[12 + c]));
        let even = [_mm512_shuffle_f32x4::<0x88>(x.0, x.1), _mm512_shuffle_f32x4::<0x88>(y.0, y.1)];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(x.0, x.1), _mm512_shuffle_f32x4::<0xdd>(y.0, y.1)];
        t[c] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
        t[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
        t[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
        t[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
    }
    t
}

/// Splits numbers into their three parts, to the nearest or by their bits; each pair has a part of `low` in its lower half
/// and of `high` in its upper.
///
/// The second part of an infinity or a NaN is NaN, and so is every result that it takes part in.
#[target_feature(enable = "avx512f")]
fn split<const NEAREST: bool>(mut low: __m512, mut high: __m512) -> [__m512i; PARTS] {
    let first = |v| if NEAREST { nearest(v) } else { upper(v) };
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for pairs in &mut parts[..PARTS - 1] {
        let (a, b) = (first(low), first(high));
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(a));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
        *pairs = self::pairs(a, b);
    }
    // What is left is a bf16 number, or NaN.
    parts[PARTS - 1] = pairs(_mm512_castps_si512(low), upper(high));
    parts
}

/// Returns the upper halves of the bits, a bf16 number each.
#[target_feature(enable = "avx512f")]
fn upper(v: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0xffff_0000_u32 as i32))
}

/// Joins the upper half of `low`, which becomes the lower one, and `high`, whose lower half is zeros.
#[target_feature(enable = "avx512f")]
fn pairs(low: __m512i, high: __m512i) -> __m512i {
    _mm512_or_si512(_mm512_srli_epi32::<16>(low), high)
}

/// Returns the nearest bf16 numbers, in the upper halves. The largest numbers and NaN are cut off
/// instead, not to overflow.
#[target_feature(enable = "avx512f")]
fn nearest(v: __m512) -> __m512i {
    /// Least number that would be rounded to infinity.
    const BEYOND: f32 = f32::from_bits(0x7f7f_8000);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let bits = _mm512_castps_si512(v);
    let rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
    let beyond = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(v), _mm512_set1_ps(BEYOND));
    _mm512_and_si512(_mm512_mask_mov_epi32(rounded, beyond, bits), upper)
}

/// Writes a line.
#[target_feature(enable = "avx512f")]
fn store(pairs: __m512i, to: &mut MaybeUninit<Line>) {
    // SAFETY: a line is 64 bytes and as much aligned.
    unsafe { _mm512_store_si512(to.as_mut_ptr().cast(), pairs) };
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    /// Sums the parts of every packed number, which is the number itself, in either order of either operand.
    #[test]
    fn parts_sum_to_the_number() {
        if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")) {
            return eprintln!("skipped: no AVX-512");
        }
        let numbers = Array2::from_shape_fn((PANEL + 3, 2 * STEP), |(i, j)| {
            (i as f32 - 17.3) * 1.37_f32.powi(j as i32 % 40 - 20) / 7.0
        });
        for rows in [true, false] {
            for order in [numbers.clone(), numbers.t().to_owned().reversed_axes()] {
                let blocks = [(0, 0), (0, STEP), (PANEL, 0)]
                    .map(|block| [Split::Nearest, Split::Bits].map(|s| (block, s)));
                for ((outer, inner), split) in blocks.into_iter().flatten() {
                    let mut lines = vec![MaybeUninit::new(Line([0; TILE])); LINES];
                    let source = Source::new(order.view(), rows, Operands::Float32).with_split(split);
                    // SAFETY: AVX-512 BW was found.
                    let parts = unsafe { source.pack(outer, inner..inner + STEP, &mut lines) };
                    assert_eq!(parts, Parts::Three);
                    // SAFETY: the lines had values before.
                    let lines: Vec<Line> = lines.iter().map(|line| unsafe { line.assume_init() }).collect();
                    for (i, k) in (0..PANEL).flat_map(|i| (0..STEP).map(move |k| (i, k))) {
                        let (pair, upper) = (k % TILE, k >= TILE);
                        // A row of x is a line; a column of w is a lane, and its pairs are lines.
                        let (line, lane) = if rows { (i % TILE, pair) } else { (pair, i % TILE) };
                        let part = |part: usize| {
                            let word = lines[part * PART + i / TILE * TILE + line].0[lane];
                            f32::from_bits(if upper { word & 0xffff_0000 } else { word << 16 })
                        };
                        let want = order.get((outer + i, inner + k)).copied().unwrap_or_default();
                        assert_eq!(part(0) + (part(1) + part(2)), want, "{i}, {k}, {rows}, {split:?}");
                    }
                }
            }
        }
    }
}
