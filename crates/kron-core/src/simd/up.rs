//! y[row, p] (+)= Σ_ρ u[row, ρ]·b[ρ, p]: Y = U·Bᵀ, dX = dT·C, U = A·T, dT = Aᵀ·dU.
//!
//! ```text
//! for row, p:  for term, ρ:  y[row, p] += u[row, ρ]·b[ρ, p]
//! ```
//!
//! Lanes run along p. M rows × P registers are summed over every rank of every term, then
//! added to y once, with one rounding. A stretch of b that fits in L1 serves
//! every row, and later rows of y are prefetched meanwhile.

use super::grid::RowGridMut;
use super::operands::{Groups, Lanes};
use super::vector::{Mac, Simd, V};
use crate::{Accum, Element};

/// Bytes of b that are kept in L1 beside the rows.
const B_BYTES: usize = 16 << 10;

/// Computes all rows and columns.
///
/// # Safety
/// The CPU has the instruction set of `K`; each term's `u` is in groups of M rows and
/// has one for every row of `y`; its `b` is in panels of P registers and has every
/// rank and lane of `y`'s width (asserted by the caller).
#[inline(always)]
pub(super) unsafe fn up<K: Mac<E>, E: Element, const M: usize, const P: usize>(
    terms: &[(Groups, Lanes)],
    y: &mut RowGridMut<E>,
    accum: Accum,
) {
    let (width, panel) = (y.layout().width, P * K::S::LANES);
    let mut ranks = 0;
    for i in 0..terms.len() {
        ranks += terms[i].0.ranks;
    }
    let panels = (B_BYTES / (4 * panel * ranks.max(1))).max(1);
    let mut first = 0;
    while first < width {
        let len = (panels * panel).min(width - first);
        let part = Stretch { terms, panel: first / panel, add: accum == Accum::Add };
        let mut y = y.columns(first, len);
        let (rows, mut r) = (y.layout().rows(), 0);
        // SAFETY: the same contract; r + the tile's rows ≤ rows.
        unsafe {
            while r + M <= rows {
                part.rows::<K, E, M, M, P>(&mut y, r);
                r += M;
            }
            if M > 2 && r + 2 <= rows {
                part.rows::<K, E, 2, M, P>(&mut y, r);
                r += 2;
            }
            while r < rows {
                part.rows::<K, E, 1, M, P>(&mut y, r);
                r += 1;
            }
        }
        first += len;
    }
}

/// Factors of some columns of y, and the first of their panels.
struct Stretch<'a> {
    terms: &'a [(Groups<'a>, Lanes<'a>)],
    panel: usize,
    add: bool,
}

impl Stretch<'_> {
    /// Computes rows r…r+M−1, every column; u is in groups of G ≥ M rows.
    #[inline(always)]
    unsafe fn rows<K: Mac<E>, E: Element, const M: usize, const G: usize, const P: usize>(
        &self,
        y: &mut RowGridMut<E>,
        r: usize,
    ) {
        let (width, lanes) = (y.layout().width, K::S::LANES);
        let mut to = [std::ptr::null_mut(); M];
        for m in 0..M {
            to[m] = y.row(r + m);
        }
        // Distance to the row tile after the next; behind the last tile, to the next stretch.
        let ahead = y.ahead::<M>(r);
        // SAFETY: y holds M distinct rows of `width` elements, u a value for
        // each of them and every rank; the tail touches only what is there.
        unsafe {
            let mut p0 = 0;
            while p0 + P * lanes <= width {
                for line in 0..(P * lanes * size_of::<E>()).div_ceil(64) {
                    let byte = ahead.wrapping_add((p0 * size_of::<E>() + 64 * line) as isize);
                    for m in 0..M {
                        K::S::prefetch(to[m].cast::<u8>().wrapping_offset(byte));
                    }
                }
                let acc = self.sums::<K, E, M, G, P>(r, self.panel + p0 / (P * lanes));
                for m in 0..M {
                    for p in 0..P {
                        let y = to[m].add(p0 + p * lanes);
                        let sum = if self.add { K::S::add(K::S::load(y), acc[m][p]) } else { acc[m][p] };
                        K::S::store(y, sum);
                    }
                }
                p0 += P * lanes;
            }
            let (panel, mut lane) = (self.panel + p0 / (P * lanes), 0);
            while p0 < width {
                let rest = lanes.min(width - p0);
                let acc = self.tail::<K, E, M, G>(r, panel, lane, rest);
                for m in 0..M {
                    let y = to[m].add(p0);
                    if rest == lanes {
                        let sum = if self.add { K::S::add(K::S::load(y), acc[m]) } else { acc[m] };
                        K::S::store(y, sum);
                    } else {
                        let sum = if self.add { K::S::add(K::S::load_n(y, rest), acc[m]) } else { acc[m] };
                        K::S::store_n(y, sum, rest);
                    }
                }
                lane += lanes;
                p0 += lanes;
            }
        }
    }

    /// Sums over the terms and their ranks for a panel of P registers: the hot loop.
    #[inline(always)]
    unsafe fn sums<K: Mac<E>, E: Element, const M: usize, const G: usize, const P: usize>(
        &self,
        r: usize,
        panel: usize,
    ) -> [[V<K, E>; P]; M] {
        // SAFETY: every rank of a term has G values at u and P registers at b.
        unsafe {
            let mut acc = [[K::S::zero(); P]; M]; // [M, P] × lanes along p
            for i in 0..self.terms.len() {
                let (u, b) = &self.terms[i];
                let (mut at, mut from) = (u.row::<G>(r), b.panel(panel));
                for _ in 0..u.ranks {
                    let mut bs = [K::S::zero(); P];
                    for p in 0..P {
                        bs[p] = K::S::load(from.wrapping_add(p * K::S::LANES));
                    }
                    for m in 0..M {
                        let u = K::S::splat(at.wrapping_add(m));
                        for p in 0..P {
                            acc[m][p] = K::mac(acc[m][p], u, bs[p]);
                        }
                    }
                    at = at.wrapping_add(G);
                    from = from.wrapping_add(b.rank_stride());
                }
            }
            acc
        }
    }

    /// Sums over the terms and their ranks for one register with `rest` lanes, `lane` lanes into a panel.
    #[inline(always)]
    unsafe fn tail<K: Mac<E>, E: Element, const M: usize, const G: usize>(
        &self,
        r: usize,
        panel: usize,
        lane: usize,
        rest: usize,
    ) -> [V<K, E>; M] {
        // SAFETY: every rank of a term has G values at u and `rest` lanes at b.
        unsafe {
            let mut acc = [K::S::zero(); M];
            for i in 0..self.terms.len() {
                let (u, b) = &self.terms[i];
                let (mut at, mut from) = (u.row::<G>(r), b.panel(panel).wrapping_add(lane));
                for _ in 0..u.ranks {
                    let bs = if rest == K::S::LANES { K::S::load(from) } else { K::S::load_n(from, rest) };
                    for m in 0..M {
                        acc[m] = K::mac(acc[m], K::S::splat(at.wrapping_add(m)), bs);
                    }
                    at = at.wrapping_add(G);
                    from = from.wrapping_add(b.rank_stride());
                }
            }
            acc
        }
    }
}
