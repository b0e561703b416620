//! [`workspace_len`]: bounds of a plan's scratch that never fall as the rows grow.
//!
//! The planner balances a sum's parts against its length, so a shorter call can take more scratch.
//! Each bound below is written as count × length for one of the planner's reservations, and holds
//! for every call over at most `rows` rows. `⌈a/b⌉ < a/b + 1` gives the sums in them.

use super::cost;
use super::grid::Chip;
use super::planner::{
    BLOCKS, MAX_CHUNKS, MIN_SLICE, RESERVED, SIMT_CHUNKS, longest_chunk, tensor_core_shape,
};
use super::tensor_core::least_groups;
use crate::problem::{check_rows, check_sizes};
use crate::tiles::{self, ROWS, SMALL_M};
use kron_core::{KronShape, Pass, Result};

/// Returns the elements of scratch that suffice for every call over at most `rows` rows, of every
/// dtype and alignment.
///
/// # Errors
/// Fails if a size exceeds the kernels' integers.
pub fn workspace_len(shape: KronShape, pass: Pass, rows: usize) -> Result<usize> {
    check_sizes(&shape)?;
    check_rows(&shape, rows)?;
    // Float32 and unaligned calls run on the SIMT tile, whatever the shape.
    let tensor_cores = tensor_core_shape(&shape);
    let len = match pass {
        Pass::Merge => 0,
        _ if rows == 0 => 0,
        Pass::Forward => {
            let bound = Bound { shape, rows: rows.min(SMALL_M) };
            let simt = bound.small_m_forward(tiles::DEPTH, cost::SIMT_STEP);
            let small_m = if tensor_cores {
                simt.max(bound.small_m_forward(tiles::down::COLS, cost::tensor_core_step(shape.width())))
            } else {
                simt
            };
            if rows <= SMALL_M {
                return Ok(small_m);
            }
            let bound = Bound { shape, rows };
            let most = Chip::new(BLOCKS, tiles::down::resident(shape.width())).most();
            let tensor = if tensor_cores { bound.forward(most, tiles::down::COLS) } else { 0 };
            small_m.max(bound.forward(BLOCKS, MIN_SLICE)).max(tensor)
        }
        Pass::Backward { .. } => {
            let tensor_cores = tensor_cores && tiles::dy::max_group(shape.width(), shape.a_in()) > 0;
            let (bound, any) = (Bound { shape, rows: rows.min(SMALL_M) }, Bound { shape, rows });
            let mut len = bound.small_m_backward();
            if tensor_cores {
                len = len.max(bound.tensor_core_small_m_backward());
            }
            if rows > SMALL_M {
                len = len.max(any.backward());
            }
            if rows > SMALL_M && tensor_cores {
                len = len.max(any.tensor_core_backward());
            }
            len
        }
    };
    Ok(len)
}

/// Returns the elements of scratch that suffice for the passes over X of every call above small m, over at most
/// `rows` rows: parts of T, or of dC.
///
/// # Errors
/// Fails if a size exceeds the kernels' integers.
pub(super) fn over_x_len(shape: KronShape, pass: Pass, rows: usize) -> Result<usize> {
    if pass == Pass::Forward {
        return workspace_len(shape, pass, rows);
    }
    check_sizes(&shape)?;
    check_rows(&shape, rows)?;
    let bound = Bound { shape, rows };
    // Where a_in is larger, a tile on tensor cores has no whole token.
    let tensor_cores =
        if tensor_core_shape(&shape) && shape.a_in() <= ROWS { bound.tensor_core_dc() } else { 0 };
    Ok(reserved([bound.simt_chunks().max(tensor_cores).saturating_mul(shape.c_len())]))
}

/// Returns the elements of scratch that suffice for the passes over dY of every call above small m, over at most
/// `rows` rows: V and the parts of dT, dA and dB.
///
/// # Errors
/// Fails if a size exceeds the kernels' integers.
pub(super) fn over_dy_len(shape: KronShape, rows: usize) -> Result<usize> {
    check_sizes(&shape)?;
    check_rows(&shape, rows)?;
    let bound = Bound { shape, rows };
    let tensor_cores = tensor_core_shape(&shape) && tiles::dy::max_group(shape.width(), shape.a_in()) > 0;
    let tensor_cores = if tensor_cores { bound.tensor_core_over_dy() } else { 0 };
    Ok(bound.simt_over_dy().max(tensor_cores))
}

/// A shape and the largest number of rows.
struct Bound {
    shape: KronShape,
    rows: usize,
}

impl Bound {
    /// Returns `rows`·`elements`, which no memory holds where it is cut off.
    fn per_row(&self, elements: usize) -> usize {
        self.rows.saturating_mul(elements)
    }

    /// Bounds T's parts at small m, of slices of whole stages. A single part is not reserved.
    fn small_m_forward(&self, stage: usize, step: usize) -> usize {
        let work = step * self.shape.c_in().div_ceil(stage);
        let t = self.per_row(self.shape.t_row()).min(cost::max_divided(work));
        reserved([cost::max_scratch(work, t)])
    }

    /// Bounds T's parts. More than one of them needs fewer than `blocks` row tiles, and then their
    /// number is at most ⌈blocks / tiles⌉, where tiles ≥ rows·a_in / ROWS.
    fn forward(&self, blocks: usize, least: usize) -> usize {
        let slices = self.shape.c_in().div_ceil(least);
        let (t, fill) = (self.per_row(self.shape.t_row()), blocks * ROWS * self.shape.width());
        reserved([if slices > 1 { t.saturating_mul(slices).min(fill + t.min(fill)) } else { 0 }])
    }

    /// Bounds the parts of dT, dA and dB on the SIMT tile at small m.
    fn small_m_backward(&self) -> usize {
        let (s, dt) = (&self.shape, self.per_row(self.shape.t_row()));
        let q_tiles = s.width().div_ceil(tiles::small_m::COLS);
        // Parts of dT have slices of dY's columns where B has rows; there are most for one token.
        let stages = if s.b_len() == 0 { 1 } else { s.b_out().div_ceil(tiles::DEPTH) };
        let slices = cost::simt_dt_parts(s.d_out(), s.t_row()).min((BLOCKS / q_tiles).max(1)).min(stages);
        let steps = (self.rows * s.a_out()).div_ceil(tiles::DEPTH);
        let db = steps.min((BLOCKS / (s.b_out().div_ceil(ROWS) * q_tiles)).max(1)).min(s.a_out());
        reserved([
            cost::max_scratch(cost::simt_dt_work(s.d_out()), dt),
            slices * q_tiles * s.a_len(),
            db * s.b_len(),
        ])
    }

    /// Bounds the chunks of a sum over tokens on the SIMT tile.
    fn simt_chunks(&self) -> usize {
        let longest = self.rows.div_ceil(longest_chunk(&self.shape));
        SIMT_CHUNKS.min(self.rows.div_ceil(ROWS)).max(longest)
    }

    /// Bounds the parts of dC on tensor cores.
    fn tensor_core_dc(&self) -> usize {
        let s = &self.shape;
        let over_x = s.c_in().div_ceil(tiles::dx::COLS);
        let most = (Chip::new(BLOCKS, tiles::dx::resident(s.width())).most() / over_x).clamp(1, MAX_CHUNKS);
        most.min(tiles::dx::tiles(self.rows, s.a_in()))
    }

    /// Bounds V, dT and the chunks' gradients on the SIMT tile.
    fn backward(&self) -> usize {
        let dc = reserved([self.simt_chunks().saturating_mul(self.shape.c_len())]);
        self.simt_over_dy().saturating_add(dc)
    }

    /// Bounds V, dT, dA and dB there.
    fn simt_over_dy(&self) -> usize {
        let (s, chunks) = (&self.shape, self.simt_chunks());
        let [da, db] = [s.a_len(), s.b_len()].map(|len| chunks.saturating_mul(len));
        reserved([self.per_row(s.a_out() * s.width()), self.per_row(s.t_row()), da, db])
    }

    /// Bounds the parts of dT, dA and dB on tensor cores at small m.
    fn tensor_core_small_m_backward(&self) -> usize {
        let (s, dt) = (&self.shape, self.per_row(self.shape.t_row()));
        let r = s.width();
        let (chunks, cols) = (self.rows.div_ceil(tiles::dy::rows(r)), s.b_out().div_ceil(tiles::dy::COLS));
        let work = cost::tensor_core_step(r) * s.a_out() * cols;
        // All parts of all chunks; there are most for one token.
        let parts = (chunks * cost::max_parts(work, s.t_row())).min(BLOCKS.div_ceil(2));
        let forced = self.forced_groups();
        let groups = parts.div_ceil(cols).min(s.a_out()).max(1).max(forced);
        reserved([
            (cost::max_scratch(work, dt) + cols * dt).max(forced * cols * dt),
            parts.max(chunks * cols) * s.a_len(),
            chunks * groups * s.b_len(),
        ])
    }

    /// Bounds the parts of dT, dA, dB and dC on tensor cores.
    fn tensor_core_backward(&self) -> usize {
        let dc = reserved([self.tensor_core_dc() * self.shape.c_len()]);
        self.tensor_core_over_dy().saturating_add(dc)
    }

    /// Bounds those of dT, dA and dB. With more groups of A's rows than needed,
    /// or narrow columns, a grid has at most `most` blocks, and at least half of the most chunks.
    fn tensor_core_over_dy(&self) -> usize {
        let (s, r) = (&self.shape, self.shape.width());
        let rows = tiles::dy::rows(r);
        let (tiles, cols, least) =
            (self.rows.div_ceil(rows), s.b_out().div_ceil(tiles::dy::COLS), least_groups(s));
        let (chunks, most) = (tiles.min(MAX_CHUNKS), Chip::new(BLOCKS, tiles::dy::resident(r)).most());
        // ≤ most / chunks parts of `rows` tokens in each of `tiles` tiles, where chunks ≥ min(tiles, MAX_CHUNKS) / 2.
        let divided = 2 * most * rows * (1 + self.rows / (rows * MAX_CHUNKS));
        let dt =
            self.per_row(cols * least).max(self.per_row(s.a_out() * s.b_out().div_ceil(32)).min(divided));
        let plain = chunks * cols * least;
        reserved([
            dt.saturating_mul(s.t_row()),
            plain.max(most) * s.a_len(),
            (chunks * least).max(most / cols) * s.b_len(),
        ])
    }

    /// Most groups of A's rows that shared memory forces: groups that do not fit are halved until they do.
    fn forced_groups(&self) -> usize {
        let max = tiles::dy::max_group(self.shape.width(), self.shape.a_in());
        if self.shape.a_out() > max { self.shape.a_out().div_ceil(max / 2 + 1) } else { 0 }
    }
}

/// Returns the sum of the pieces, each reserved in whole units.
fn reserved<const N: usize>(pieces: [usize; N]) -> usize {
    pieces.into_iter().fold(0, |sum: usize, len| {
        sum.saturating_add(len.checked_next_multiple_of(RESERVED).unwrap_or(usize::MAX))
    })
}
