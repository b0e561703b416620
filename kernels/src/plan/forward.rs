//! The forward pass: `down` over X, `up` over Y.

use super::columns::{Cols, even_columns, narrow};
use super::cost;
use super::grid::{Chip, step_bytes, widths};
use super::planner::{MIN_SLICE, Planner};
use crate::names::Tile;
use crate::tiles::{self, ROWS, SMALL_M, simt_cols, simt_up_shared};
use kron_core::Result;

impl Planner<'_> {
    /// Plans T: rows m = (token, j), and slices of c_in.
    pub(super) fn down(&mut self) -> Result<()> {
        let (shape, n, tensor_cores) = (self.problem.shape, self.problem.rows, self.uses_tensor_cores());
        let r = shape.width();
        let (stage, step, q_width, sums) = if tensor_cores {
            (tiles::down::COLS, cost::tensor_core_step(r), r, n * tiles::padded(r))
        } else {
            (tiles::DEPTH, cost::SIMT_STEP, simt_cols(r), n * r.min(tiles::DEPTH))
        };
        let (tiles, q_tiles) = ((n * shape.a_in()).div_ceil(ROWS), Cols::of(r, q_width));
        let splits = if n > SMALL_M && tensor_cores {
            self.slices(tiles)
        } else {
            let slice = if n <= SMALL_M {
                let parts = cost::parts(step * shape.c_in().div_ceil(stage), n * shape.t_row(), sums);
                even_columns(shape.c_in(), parts.min(self.one_wave() / (tiles * q_tiles.tiles)), stage)
            } else {
                let wanted = self.blocks.div_ceil(tiles).clamp(1, shape.c_in().div_ceil(MIN_SLICE));
                shape.c_in().div_ceil(wanted).next_multiple_of(tiles::down::COLS)
            };
            self.plan.t_slice = slice;
            shape.c_in().div_ceil(slice)
        };
        self.plan.t.count = splits;
        if splits > 1 {
            self.plan.t = self.reserve(splits, n * shape.t_row());
        }
        let grid = [tiles, splits];
        if !tensor_cores {
            return self.simt_step("down", &grid, q_tiles);
        }
        self.step("down", Tile::TensorCore(r), &grid, tiles::down::THREADS, tiles::down::shared(r), q_tiles)?;
        self.set_resident(tiles::down::resident(r));
        Ok(())
    }

    /// Plans Y from the parts of T: tokens, i, and columns of B.
    pub(super) fn up(&mut self) -> Result<()> {
        let (shape, n, tensor_cores) = (self.problem.shape, self.problem.rows, self.uses_tensor_cores());
        let (r, small_m) = (shape.width(), n <= SMALL_M);
        let (step, depth, widest) = match tensor_cores {
            true => (cost::tensor_core_step(r), r, tiles::up::WARP_COLS * tiles::up::WARPS),
            false => (cost::SIMT_STEP, tiles::DEPTH, 64),
        };
        let width = if small_m {
            let steps = shape.a_out() * shape.b_out().div_ceil(widest) * r.div_ceil(depth);
            let own = shape.a_out() * shape.b_len() + n * shape.d_out();
            let loads = self.plan.t.count * n * shape.t_row();
            let tiles = cost::column_tiles(step * steps, own, loads).min(self.one_wave());
            narrow(shape.d_out() / tiles, tiles::up::WARP_COLS, widest)
        } else if tensor_cores {
            self.up_width(widest)
        } else {
            widest
        };
        let cols = Cols { tiles: shape.a_out() * shape.b_out().div_ceil(width), width };
        let grid = [n.div_ceil(ROWS)];
        if !tensor_cores {
            return self.step("up", Tile::Simt(64), &grid, tiles::SIMT_THREADS, simt_up_shared(), cols);
        }
        // At small m all threads of a block add up T's parts.
        let warps = match small_m {
            true => tiles::up::WARPS,
            false => width.min(shape.b_out()).div_ceil(tiles::up::WARP_COLS),
        };
        let tile = if small_m { Tile::SmallM(r) } else { Tile::TensorCore(r) };
        self.step("up", tile, &grid, 32 * warps as u32, tiles::up::shared(r, small_m), cols)?;
        self.set_resident(if small_m { 1 } else { tiles::up::resident(r, warps) });
        Ok(())
    }

    /// Returns the columns of a block of `up` on tensor cores above small m: the most that leave a block for nearly
    /// every multiprocessor.
    fn up_width(&self, widest: usize) -> usize {
        let (shape, tiles) = (self.problem.shape, self.problem.rows.div_ceil(ROWS));
        let fills = |width: &usize| {
            let blocks = tiles * shape.a_out() * shape.b_out().div_ceil(*width);
            10 * blocks >= 9 * self.one_wave()
        };
        let least = tiles::up::WARP_COLS;
        widths(shape.b_out(), widest, least).find(fills).unwrap_or(least)
    }

    /// Cuts c_in into slices of whole stages for `down` on tensor cores above small m, and returns their number.
    fn slices(&mut self, tiles: usize) -> usize {
        let (shape, r) = (self.problem.shape, self.problem.shape.width());
        let (chip, columns) = (Chip::new(self.blocks, tiles::down::resident(r)), tiles::down::COLS);
        let stages = shape.c_in().div_ceil(columns);
        let step = step_bytes(2 * ROWS * columns, 4 * (90 + 4 * r));
        let mut best = (u128::MAX, 1);
        for target in chip.targets() {
            // The fewest slices whose longest has as many stages.
            let longest = stages.div_ceil((target / tiles).clamp(1, stages));
            let slices = stages.div_ceil(longest);
            // Parts of T are written once, and read by the column tiles of `up`.
            let parts = if slices > 1 { 12 * slices * self.problem.rows * shape.t_row() } else { 0 };
            best = best.min((chip.cost(tiles * slices, longest, step, parts), slices));
        }
        let slices = best.1;
        self.plan.t_slice = (stages / slices * columns).min(shape.c_in());
        self.plan.t_longer = stages % slices;
        slices
    }
}
