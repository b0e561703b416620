//! The backward pass on the SIMT tile.

use super::columns::{Cols, even};
use super::cost;
use super::planner::{Planner, SIMT_CHUNKS, longest_chunk};
use crate::names::Tile;
use crate::tiles::{self, ROWS, simt_cols, simt_shared};
use kron_core::Result;

impl Planner<'_> {
    /// Plans V, dT, and the parts of dA and dB above small m.
    pub(super) fn simt_dy(&mut self) -> Result<()> {
        let (shape, n) = (self.problem.shape, self.problem.rows);
        let (r, q_tiles) = (shape.width(), Cols::of(shape.width(), simt_cols(shape.width())));
        let (chunks, _) = self.simt_chunks();
        self.plan.v = self.reserve(1, n * shape.a_out() * r);
        self.plan.dt = self.reserve(1, n * shape.t_row());
        self.simt_step("v", &[(n * shape.a_out()).div_ceil(ROWS)], q_tiles)?;
        self.step("dt", Tile::None, &[(n * shape.t_row()).div_ceil(256)], tiles::SIMT_THREADS, 0, Cols::ONE)?;
        if shape.a_len() > 0 {
            self.plan.da = self.reserve(chunks, shape.a_len());
            let grid = [chunks, shape.a_out().div_ceil(ROWS)];
            let cols = Cols::of(shape.a_in(), 16);
            self.step("da", Tile::None, &grid, tiles::SIMT_THREADS, simt_shared(16), cols)?;
            self.set_chunks();
        }
        if shape.b_len() > 0 {
            self.plan.db = self.reserve(chunks, shape.b_len());
            self.simt_step("db", &[chunks, shape.b_out().div_ceil(ROWS)], q_tiles)?;
            self.set_chunks();
        }
        Ok(())
    }

    /// Plans the parts of dC, and dX, above small m.
    pub(super) fn simt_dx(&mut self, dx: bool) -> Result<()> {
        let (shape, n) = (self.problem.shape, self.problem.rows);
        let (chunks, _) = self.simt_chunks();
        self.plan.dc = self.reserve(chunks, shape.c_len());
        let q_tiles = Cols::of(shape.width(), simt_cols(shape.width()));
        self.simt_step("dc", &[chunks, shape.c_in().div_ceil(ROWS)], q_tiles)?;
        self.set_chunks();
        if dx {
            self.simt_step("dx", &[(n * shape.a_in()).div_ceil(ROWS)], Cols::of(shape.c_in(), 64))?;
        }
        Ok(())
    }

    /// Returns the chunks of a sum over tokens, and the tokens of each.
    fn simt_chunks(&self) -> (usize, usize) {
        let n = self.problem.rows;
        let longest = longest_chunk(&self.problem.shape);
        let chunk = n.div_ceil(SIMT_CHUNKS).next_multiple_of(ROWS).min(n).min(longest);
        (n.div_ceil(chunk), chunk)
    }

    /// Gives the last step those chunks.
    fn set_chunks(&mut self) {
        let (chunks, chunk) = self.simt_chunks();
        if let Some(step) = self.plan.steps.last_mut() {
            (step.row_chunks, step.chunk_rows) = (chunks as u32, chunk as u64);
        }
    }

    /// Plans `dy` and `dx` on the SIMT tile; the number of parts determines their ranges.
    pub(super) fn small_m_backward(&mut self, dx: bool) -> Result<()> {
        let (shape, n) = (self.problem.shape, self.problem.rows);
        let q_tiles = Cols::of(shape.width(), tiles::small_m::COLS);
        // A part of dT has some rows of A, then some columns of B; with a full inner factor the columns of q.
        let max = cost::simt_dt_parts(shape.d_out(), n * shape.t_row())
            .clamp(1, (self.blocks / q_tiles.tiles).max(1));
        let groups = even(shape.a_out(), max);
        let slices = match shape.b_len() {
            0 => 1,
            _ => even(shape.b_out(), (max / groups).min(shape.b_out().div_ceil(tiles::DEPTH))),
        };
        (self.plan.a_row_groups, self.plan.rows_per_group) = (groups, shape.a_out().div_ceil(groups));
        self.plan.dt = self.reserve(groups * slices, n * shape.t_row());
        if shape.a_len() > 0 {
            self.plan.da = self.reserve(slices * q_tiles.tiles, shape.a_len());
        }
        let mut blocks = groups * slices;
        if shape.b_len() > 0 {
            // Parts of dB fill the GPU, but each has at least one whole step.
            let tiles = shape.b_out().div_ceil(ROWS);
            let max = (n * shape.a_out())
                .div_ceil(tiles::DEPTH)
                .min((self.blocks / (tiles * q_tiles.tiles)).max(1));
            self.plan.db = self.reserve(even(shape.a_out(), max), shape.b_len());
            blocks += tiles * self.plan.db.count;
        }
        let tile = Tile::Simt(tiles::small_m::COLS);
        self.step("dy", tile, &[blocks], tiles::SIMT_THREADS, tiles::small_m::dy_shared(), q_tiles)?;
        let tiles_of_m = if dx { (n * shape.a_in()).div_ceil(ROWS) } else { 0 };
        let blocks = shape.width().div_ceil(ROWS) + tiles_of_m;
        let (threads, shared) = (tiles::SIMT_THREADS, tiles::small_m::dx_shared());
        self.step("dx", tile, &[blocks], threads, shared, Cols::of(shape.c_in(), tiles::small_m::COLS))
    }
}
