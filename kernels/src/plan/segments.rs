//! Calls over segments: rows of many adapters of one shape.
//!
//! The launches, their grids and the scratch depend on the numbers of rows and slots alone, so that a captured
//! graph serves every table. No sum depends on the tiles, only on the shape.

use super::columns::Cols;
use super::launches::{LaunchPlan, Parts};
use super::planner::{BLOCKS, Planner, RESERVED};
use crate::names::Tile;
use crate::problem::{Problem, check_rows, check_segments, check_sizes};
use crate::tiles::segments::{
    A_PER_WARP, COLS, DOT_SHARED, ENTRY, GRAD_SHARED, RANKS, RESIDENT, ROWS, SORT_SHARED, THREADS, WARPS,
    column_blocks,
};
use kron_core::{Error, KronShape, Pass, Result};

impl LaunchPlan {
    /// Plans a call over segments: `problem.rows` rows, each of one of `slots` adapters of the shape.
    ///
    /// # Errors
    /// Fails for a merge, without a slot, and where sizes or a grid exceed the kernels' integers.
    pub fn segments(problem: &Problem, slots: usize) -> Result<Self> {
        Self::segments_aimed_at(BLOCKS, problem, slots)
    }

    /// Plans for another number of blocks, at least one. With few blocks tiles have more rows; no bit of an
    /// output depends on it.
    ///
    /// # Errors
    /// As [`LaunchPlan::segments`].
    pub fn segments_aimed_at(blocks: usize, problem: &Problem, slots: usize) -> Result<Self> {
        check(&problem.shape, problem.rows)?;
        check_segments(&problem.shape, problem.rows, slots)?;
        let mut planner = Planner::new(problem, blocks);
        if problem.rows > 0 {
            planner.segments(slots)?;
        }
        Ok(planner.finish(slots.min(problem.rows)))
    }
}

/// Returns the elements of scratch that suffice for every call over segments of at most `rows` rows, of any
/// number of slots.
///
/// # Errors
/// Fails if a size exceeds the kernels' integers.
pub fn segments_workspace_len(shape: KronShape, pass: Pass, rows: usize) -> Result<usize> {
    check(&shape, rows)?;
    let parts = scratch(&shape, pass, rows);
    Ok(parts.into_iter().fold(0, |sum: usize, len| sum.saturating_add(len.next_multiple_of(RESERVED))))
}

fn check(shape: &KronShape, rows: usize) -> Result<()> {
    check_sizes(shape)?;
    check_rows(shape, rows)
}

/// Elements of the sorted order, the list of tiles, U, V and dT.
fn scratch(shape: &KronShape, pass: Pass, rows: usize) -> [usize; 5] {
    let wide = rows * shape.a_out() * shape.width();
    match pass {
        // Never more tiles than rows.
        Pass::Forward => [rows, ENTRY * rows, wide, 0, 0],
        Pass::Backward { .. } => [rows, ENTRY * rows, wide, wide, rows * shape.t_row()],
        Pass::Merge => [0; 5],
    }
}

impl Planner<'_> {
    fn segments(&mut self, slots: usize) -> Result<()> {
        let (shape, n) = (self.problem.shape, self.problem.rows);
        let [order, list, u, v, dt] = scratch(&shape, self.problem.pass, n);
        // The more rows, the fewer tiles read one adapter's θ.
        let rows = n.div_ceil(self.one_wave()).next_power_of_two().min(ROWS);
        // A tile for every row where that is no more than the least for every table.
        let tiles = n.min((n / rows).saturating_add(slots));
        self.plan.tile_rows = rows;
        self.plan.order = self.reserve(1, order);
        self.plan.segments = Parts { count: tiles, ..self.reserve(1, list) };
        self.plan.u = self.reserve(1, u);
        self.segments_step("sort", slots, SORT_SHARED, Cols::ONE)?;
        let ranks = Cols::of(shape.width(), RANKS);
        let columns = |width| Cols { tiles: column_blocks(width), width: COLS };
        match self.problem.pass {
            Pass::Merge => {
                return Err(Error::Unsupported("a merge is of one adapter, not over segments".into()));
            }
            Pass::Forward => {
                self.segments_step("down", tiles, DOT_SHARED, ranks)?;
                self.segments_step("up", tiles, 0, columns(shape.b_out()))?;
            }
            Pass::Backward { dx } => {
                self.plan.v = self.reserve(1, v);
                self.plan.dt = self.reserve(1, dt);
                self.segments_step("dy", tiles, DOT_SHARED, ranks)?;
                let b_blocks = if shape.b_len() > 0 { column_blocks(shape.b_out()) } else { 0 };
                let of_a = shape.a_len().div_ceil(A_PER_WARP * WARPS);
                let blocks = (column_blocks(shape.c_in()) + b_blocks) * ranks.tiles + of_a;
                self.segments_step("grad", tiles, GRAD_SHARED, Cols { tiles: blocks, width: COLS })?;
                if dx {
                    self.segments_step("dx", tiles, 0, columns(shape.c_in()))?;
                }
            }
        }
        Ok(())
    }

    fn segments_step(&mut self, pass: &str, grid: usize, shared: usize, cols: Cols) -> Result<()> {
        let tile = if pass == "sort" { Tile::None } else { Tile::Segments };
        self.step(pass, tile, &[grid], THREADS, shared, cols)?;
        self.set_tiles(self.plan.segments.count, 1, RESIDENT)
    }
}
