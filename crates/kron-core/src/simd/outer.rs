//! g[ρ, p] += Σ_row u[row, ρ]·x[row, p]: dB = dYᵀ·U, dC = dTᵀ·X.
//!
//! ```text
//! for row:  for ρ, p:  g[ρ, p] += u[row, ρ]·x[row, p]
//! ```
//!
//! Lanes run along p. R ranks × P registers are summed over a run of rows, first
//! to last, and then added to g: short sums round less than one long sum. The
//! columns of the next tile are prefetched meanwhile. With pairs, one lane of u
//! holds two neighbouring rows.

use super::grid::RowGrid;
use super::operands::{LanesMut, Rows};
use super::vector::{Mac, Simd, V};
use crate::Element;

/// Rows summed in registers before they are added to g. Even, because of the pairs.
pub(crate) const RUN: usize = 64;

/// Computes all columns and ranks.
///
/// # Safety
/// The CPU has the instruction set of `K`; `u` holds every rank of every row
/// (or pair of rows) and `g` every register of `x`'s width (asserted by the caller).
#[inline(always)]
pub(super) unsafe fn outer<K: Mac<E>, E: Element, const R: usize, const P: usize>(
    u: Rows,
    x: RowGrid<E>,
    g: &mut LanesMut,
) {
    let (width, lanes) = (x.layout().width, K::S::LANES);
    let mut v = 0;
    // SAFETY: the same contract; every tile lies inside the width and the ranks.
    unsafe {
        while (v + P) * lanes <= width {
            ranks::<K, E, R, P>(u, x, g, v, lanes);
            v += P;
        }
        while v * lanes < width {
            ranks::<K, E, R, 1>(u, x, g, v, lanes.min(width - v * lanes));
            v += 1;
        }
    }
}

/// Computes registers v…v+P−1 of every rank; the last register has `rest` lanes.
#[inline(always)]
unsafe fn ranks<K: Mac<E>, E: Element, const R: usize, const P: usize>(
    u: Rows,
    x: RowGrid<E>,
    g: &mut LanesMut,
    v: usize,
    rest: usize,
) {
    let mut rho = 0;
    // SAFETY: the same contract; rho + the tile's ranks ≤ u's.
    unsafe {
        while rho + R <= u.ranks {
            tile::<K, E, R, P>(u, x, g, v, rho, rest);
            rho += R;
        }
        if R > 4 && rho + 4 <= u.ranks {
            tile::<K, E, 4, P>(u, x, g, v, rho, rest);
            rho += 4;
        }
        if rho + 2 <= u.ranks {
            tile::<K, E, 2, P>(u, x, g, v, rho, rest);
            rho += 2;
        }
        if rho < u.ranks {
            tile::<K, E, 1, P>(u, x, g, v, rho, rest);
        }
    }
}

/// Computes ranks rho…rho+R−1 of registers v…v+P−1: the hot loop.
#[inline(always)]
unsafe fn tile<K: Mac<E>, E: Element, const R: usize, const P: usize>(
    u: Rows,
    x: RowGrid<E>,
    g: &mut LanesMut,
    v: usize,
    rho: usize,
    rest: usize,
) {
    let lanes = K::S::LANES;
    let (mut xs, mut us) = (Walk::over(&x), u.data.as_ptr().wrapping_add(rho));
    // SAFETY: the walks visit each row once, columns v·lanes… are inside x's
    // width up to `rest`, and g holds v + P registers of every rank.
    unsafe {
        let mut left = xs.rows;
        while left > 0 {
            let run = RUN.min(left);
            left -= run;
            let mut acc = [[K::S::zero(); P]; R]; // [R, P] × lanes along p
            for _ in 0..run / K::PAIR {
                let first = xs.step().add(v * lanes);
                let second = if K::PAIR == 2 { xs.step().add(v * lanes) } else { first };
                for line in 0..(P * lanes * size_of::<E>()).div_ceil(64) {
                    let ahead = P * lanes + line * (64 / size_of::<E>());
                    K::S::prefetch(first.wrapping_add(ahead));
                    if K::PAIR == 2 {
                        K::S::prefetch(second.wrapping_add(ahead));
                    }
                }
                let mut x = [K::S::zero(); P];
                for p in 0..P {
                    x[p] = if P == 1 && rest < lanes {
                        K::rows_n(first, Some(second), rest)
                    } else {
                        K::rows(first.add(p * lanes), second.add(p * lanes))
                    };
                }
                accumulate::<K, E, R, P>(&mut acc, us, &x);
                us = us.wrapping_add(u.ranks);
            }
            if run % K::PAIR == 1 {
                let last = xs.step().add(v * lanes);
                let mut x = [K::S::zero(); P];
                for p in 0..P {
                    x[p] = K::rows_n(last.add(p * lanes), None, if P == 1 { rest } else { lanes });
                }
                accumulate::<K, E, R, P>(&mut acc, us, &x);
            }
            for i in 0..R {
                for p in 0..P {
                    let g = g.data.as_mut_ptr().add((v + p) * g.register + (rho + i) * g.rank);
                    K::S::store(g, K::S::add(K::S::load(g), acc[i][p]));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn accumulate<K: Mac<E>, E: Element, const R: usize, const P: usize>(
    acc: &mut [[V<K, E>; P]; R],
    u: *const f32,
    x: &[V<K, E>; P],
) {
    for i in 0..R {
        // SAFETY: u points at R values of a row.
        let u = unsafe { K::S::splat(u.add(i)) };
        for p in 0..P {
            // SAFETY: the caller proves the instruction set.
            acc[i][p] = unsafe { K::mac(acc[i][p], u, x[p]) };
        }
    }
}

/// Visits the rows of a grid in order, without a division.
struct Walk<'a, E> {
    grid: RowGrid<'a, E>,
    token: usize,
    next: *const E,
    rows: usize,
    block: usize,
    blocks: usize,
    block_step: isize,
    token_step: isize,
}

impl<'a, E> Walk<'a, E> {
    #[inline(always)]
    fn over(grid: &RowGrid<'a, E>) -> Self {
        let l = grid.layout();
        let rows = l.rows();
        Self {
            grid: *grid,
            token: 0,
            next: if rows > 0 { grid.row(0) } else { std::ptr::null() },
            rows,
            block: 0,
            blocks: l.a,
            block_step: l.a_stride,
            token_step: l.n_stride - (l.a as isize - 1) * l.a_stride,
        }
    }

    #[inline(always)]
    fn step(&mut self) -> *const E {
        let row = self.next;
        self.block += 1;
        if self.block < self.blocks {
            self.next = row.wrapping_offset(self.block_step);
            return row;
        }
        (self.block, self.token) = (0, self.token + 1);
        self.next = match self.grid.table() {
            None => row.wrapping_offset(self.token_step),
            // The step behind the last row is not taken.
            Some(tokens) if self.token == tokens.len() => row,
            Some(_) => self.grid.row(self.token * self.blocks),
        };
        row
    }
}
