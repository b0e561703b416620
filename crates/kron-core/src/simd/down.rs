//! t[row, ρ] (+)= Σ_k x[row, k]·c[ρ, k]: T = X·Cᵀ, dU = dY·B, dA = dU·Tᵀ.
//!
//! ```text
//! for row, ρ:  for k:  t[row, ρ] += x[row, k]·c[ρ, k]
//! ```
//!
//! Lanes run along k. M rows × R ranks of accumulators stay in registers. A
//! stretch of c that fits in L1 serves every row before the next stretch, and
//! the next rows are prefetched meanwhile. The order of a row's sums does not
//! depend on the other rows.

use super::grid::{RowGrid, RowGridMut};
use super::operands::Lanes;
use super::vector::{Mac, Simd, V};
use crate::Element;

/// Bytes of c that are kept in L1 beside a stretch of x.
const C_BYTES: usize = 16 << 10;

/// Computes all rows and ranks.
///
/// # Safety
/// The CPU has the instruction set of `K`; `c` holds every rank and lane that
/// `x`'s width and `t`'s width ask for (asserted by the caller).
#[inline(always)]
pub(super) unsafe fn down<K: Mac<E>, E: Element, const M: usize, const R: usize>(
    x: RowGrid<E>,
    c: Lanes,
    t: &mut RowGridMut<f32>,
    add: bool,
) {
    let (ranks, width) = (t.layout().width, x.layout().width);
    let step = K::S::LANES * K::PAIR;
    let stretch = (C_BYTES / (4 * K::S::LANES * ranks.min(R))).max(8) * step;
    let mut first = 0;
    while first == 0 || first < width {
        let len = stretch.min(width - first);
        let part = Stretch { x: x.columns(first, len), c: c.after(first / step), add: add || first > 0 };
        let mut rho = 0;
        // SAFETY: the same contract; rho + the tile's ranks ≤ ranks.
        unsafe {
            while rho + R <= ranks {
                part.ranks::<K, M, R>(t, rho);
                rho += R;
            }
            if R > 4 && rho + 4 <= ranks {
                part.ranks::<K, M, 4>(t, rho);
                rho += 4;
            }
            if rho + 2 <= ranks {
                part.ranks::<K, M, 2>(t, rho);
                rho += 2;
            }
            if rho < ranks {
                part.ranks::<K, M, 1>(t, rho);
            }
        }
        first += stretch;
    }
}

/// Some columns of x and the matching lanes of c.
struct Stretch<'a, E> {
    x: RowGrid<'a, E>,
    c: Lanes<'a>,
    add: bool,
}

impl<E: Element> Stretch<'_, E> {
    /// Computes every row of ranks rho…rho+R−1.
    #[inline(always)]
    unsafe fn ranks<K: Mac<E>, const M: usize, const R: usize>(&self, t: &mut RowGridMut<f32>, rho: usize) {
        let (rows, c) = (self.x.layout().rows(), self.c.rank(rho));
        let mut r = 0;
        // SAFETY: the same contract; r + the tile's rows ≤ rows.
        unsafe {
            while r + M <= rows {
                self.tile::<K, M, R>(c, t, r, rho);
                r += M;
            }
            if M > 2 && r + 2 <= rows {
                self.tile::<K, 2, R>(c, t, r, rho);
                r += 2;
            }
            while r < rows {
                self.tile::<K, 1, R>(c, t, r, rho);
                r += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<K: Mac<E>, const M: usize, const R: usize>(
        &self,
        c: Lanes,
        t: &mut RowGridMut<f32>,
        r: usize,
        rho: usize,
    ) {
        let width = self.x.layout().width;
        let mut x = [std::ptr::null(); M];
        for m in 0..M {
            x[m] = self.x.row(r + m);
        }
        // Distance to the row tile after the next; behind the last tile, to the next stretch.
        let ahead = self.x.ahead::<M>(r);
        // SAFETY: x holds M rows of `width` elements, and the caller proves
        // the rest; t's row r + m has a rank rho…rho+R−1.
        unsafe {
            let acc = sums::<K, E, M, R>(x, ahead, c, width);
            for (m, acc) in acc.into_iter().enumerate() {
                let t = t.row(r + m).add(rho);
                for (i, sum) in K::S::sums(acc).into_iter().enumerate() {
                    let old = if self.add { *t.add(i) } else { 0.0 };
                    *t.add(i) = old + sum;
                }
            }
        }
    }
}

/// Sums `width` elements, lane by lane: the hot loop.
#[inline(always)]
unsafe fn sums<K: Mac<E>, E: Element, const M: usize, const R: usize>(
    x: [*const E; M],
    ahead: isize,
    c: Lanes,
    width: usize,
) -> [[V<K, E>; R]; M] {
    let step = K::S::LANES * K::PAIR;
    // SAFETY: every x pointer has `width` elements and c a vector for every
    // started `step` of them; the tail reads only what is there.
    unsafe {
        let mut acc = [[K::S::zero(); R]; M]; // [M, R] × lanes along k
        let whole = width / step;
        for s in 0..whole {
            let k = s * step;
            let mut xs = [K::S::zero(); M];
            for m in 0..M {
                xs[m] = K::load(x[m].add(k));
                K::S::prefetch(x[m].wrapping_add(k).wrapping_byte_offset(ahead));
            }
            for rho in 0..R {
                let c = K::S::load(c.panel(s).wrapping_add(rho * c.rank_stride()));
                for m in 0..M {
                    acc[m][rho] = K::mac(acc[m][rho], xs[m], c);
                }
            }
        }
        let rest = width - whole * step;
        if rest > 0 {
            let mut xs = [K::S::zero(); M];
            for m in 0..M {
                xs[m] = K::load_n(x[m].add(whole * step), rest);
            }
            let lanes = rest.div_ceil(K::PAIR);
            for rho in 0..R {
                let c = c.panel(whole).wrapping_add(rho * c.rank_stride());
                let c = if lanes == K::S::LANES { K::S::load(c) } else { K::S::load_n(c, lanes) };
                for m in 0..M {
                    acc[m][rho] = K::mac(acc[m][rho], xs[m], c);
                }
            }
        }
        acc
    }
}
