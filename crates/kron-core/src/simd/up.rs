//! y[row, p] (+)= Σ_ρ u[row, ρ]·b[ρ, p]: Y = U·Bᵀ, dX = dT·C, U = A·T, dT = Aᵀ·dU.
//!
//! ```text
//! for row, p:  for ρ:  y[row, p] += u[row, ρ]·b[ρ, p]
//! ```
//!
//! Lanes run along p. M rows × P registers are summed over every rank, then
//! added to y once, with one rounding; a stretch of b short enough for L1 is
//! used by every row, and the next rows of y are fetched meanwhile.

use super::grid::GridMut;
use super::kernels::{Lanes, Scalars};
use super::vector::{Mac, Simd, V};
use crate::{Accum, Element};

/// Bytes of b that are kept in L1 beside the rows.
const B_BYTES: usize = 16 << 10;

/// All rows, all columns.
///
/// # Safety
/// The CPU has the instruction set of `K`; `u` and `b` hold every rank, and
/// `b` every lane of `y`'s width (asserted by the caller).
#[inline(always)]
pub(super) unsafe fn up<K: Mac<E>, E: Element, const M: usize, const P: usize>(
    u: Scalars,
    b: Lanes,
    y: &mut GridMut<E>,
    accum: Accum,
) {
    let (width, lanes) = (y.layout().width, K::S::LANES);
    let stretch = (B_BYTES / (4 * lanes * u.ranks)).next_multiple_of(P).max(P) * lanes;
    let mut first = 0;
    while first < width {
        let len = stretch.min(width - first);
        let part = Stretch { u, b: b.after(first / lanes), add: accum == Accum::Add };
        let mut y = y.columns(first, len);
        let (rows, mut r) = (y.layout().rows(), 0);
        // SAFETY: the same contract; r + the tile's rows ≤ rows.
        unsafe {
            while r + M <= rows {
                part.rows::<K, E, M, P>(&mut y, r);
                r += M;
            }
            while r < rows {
                part.rows::<K, E, 1, P>(&mut y, r);
                r += 1;
            }
        }
        first += stretch;
    }
}

/// The factors of some columns of y.
struct Stretch<'a> {
    u: Scalars<'a>,
    b: Lanes<'a>,
    add: bool,
}

impl Stretch<'_> {
    /// Rows r…r+M−1, every column.
    #[inline(always)]
    unsafe fn rows<K: Mac<E>, E: Element, const M: usize, const P: usize>(
        &self,
        y: &mut GridMut<E>,
        r: usize,
    ) {
        let (rows, width, lanes) = (y.layout().rows(), y.layout().width, K::S::LANES);
        let u: [*const f32; M] = std::array::from_fn(|m| self.u.rows.row(r + m));
        let next: [*const E; M] = std::array::from_fn(|m| {
            let ahead = if r + M + m < rows { y.row(r + M + m) } else { y.row(m % rows).wrapping_add(width) };
            ahead.cast_const()
        });
        let y: [*mut E; M] = std::array::from_fn(|m| y.row(r + m));
        // SAFETY: y holds M distinct rows of `width` elements, u one of `ranks`
        // lanes for each; the tail touches only what is there.
        unsafe {
            let mut v = 0;
            while (v + P) * lanes <= width {
                for p in 0..P {
                    for next in next {
                        K::S::prefetch(next.wrapping_add((v + p) * lanes));
                    }
                }
                let acc = self.sums::<K, E, M, P>(u, v);
                for m in 0..M {
                    for p in 0..P {
                        let y = y[m].add((v + p) * lanes);
                        let sum = if self.add { K::S::add(K::S::load(y), acc[m][p]) } else { acc[m][p] };
                        K::S::store(y, sum);
                    }
                }
                v += P;
            }
            while v * lanes < width {
                let rest = lanes.min(width - v * lanes);
                let acc = self.tail::<K, E, M>(u, v, rest);
                for m in 0..M {
                    let y = y[m].add(v * lanes);
                    if rest == lanes {
                        let sum = if self.add { K::S::add(K::S::load(y), acc[m]) } else { acc[m] };
                        K::S::store(y, sum);
                    } else {
                        let sum = if self.add { K::S::add(K::S::load_n(y, rest), acc[m]) } else { acc[m] };
                        K::S::store_n(y, sum, rest);
                    }
                }
                v += 1;
            }
        }
    }

    /// Σ over the ranks of registers v…v+P−1: the hot loop.
    #[inline(always)]
    unsafe fn sums<K: Mac<E>, E: Element, const M: usize, const P: usize>(
        &self,
        u: [*const f32; M],
        v: usize,
    ) -> [[V<K, E>; P]; M] {
        // SAFETY: every rank has a lane in each u and P registers in b.
        unsafe {
            let mut acc = [[K::S::zero(); P]; M]; // [M, P] × lanes along p
            for rho in 0..self.u.ranks {
                let b: [V<K, E>; P] = std::array::from_fn(|p| K::S::load(self.b.at(v + p, rho)));
                for m in 0..M {
                    let u = K::S::splat(u[m].wrapping_offset(rho as isize * self.u.stride));
                    for p in 0..P {
                        acc[m][p] = K::mac(acc[m][p], u, b[p]);
                    }
                }
            }
            acc
        }
    }

    /// The same for one register of which `rest` lanes exist.
    #[inline(always)]
    unsafe fn tail<K: Mac<E>, E: Element, const M: usize>(
        &self,
        u: [*const f32; M],
        v: usize,
        rest: usize,
    ) -> [V<K, E>; M] {
        // SAFETY: every rank has a lane in each u and `rest` lanes in b's register v.
        unsafe {
            let mut acc = [K::S::zero(); M];
            for rho in 0..self.u.ranks {
                let b = self.b.at(v, rho);
                let b = if rest == K::S::LANES { K::S::load(b) } else { K::S::load_n(b, rest) };
                for m in 0..M {
                    let u = K::S::splat(u[m].wrapping_offset(rho as isize * self.u.stride));
                    acc[m] = K::mac(acc[m], u, b);
                }
            }
            acc
        }
    }
}
