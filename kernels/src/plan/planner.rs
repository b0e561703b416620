//! The planner: each pass's launches, grids and splits.

use arrayvec::ArrayVec;

use super::columns::Cols;
use super::launches::{LaunchPlan, Parts, Step};
use crate::names::{Tile, name};
use crate::problem::{Problem, check_rows, check_sizes};
use crate::tiles::{self, ROWS, SMALL_M, TENSOR_CORE_RANKS, simt_shared};
use kron_core::{Dtype, Error, KronShape, Pass, Result};

/// Number of blocks that fills the largest GPU twice; splits aim at it.
pub const BLOCKS: usize = 264;

/// Least number of columns in a slice of c_in.
pub(super) const MIN_SLICE: usize = 128;
/// Largest number of parts of a sum over tokens.
pub(super) const MAX_CHUNKS: usize = 128;
/// Number of chunks of tokens on the SIMT tile, unless one would exceed [`longest_chunk`].
pub(super) const SIMT_CHUNKS: usize = 32;
/// Elements of scratch that are reserved at a time: 256 bytes.
pub(super) const RESERVED: usize = 64;
/// Bytes of a call's floor for each launch after the first, below which latency counts: those that an H200
/// moves in five times the estimated 1.5 µs of a launch in a graph.
pub(super) const EARLY_BYTES: u128 = 32 << 20;
/// Largest number of blocks of a grid.
pub(super) const MAX_GRID: u128 = i32::MAX as u128;

impl LaunchPlan {
    /// Plans a problem.
    ///
    /// # Errors
    /// Fails if a launch needs more blocks than a grid can have, and if activations have more elements
    /// than 64-bit byte offsets reach.
    pub fn new(problem: &Problem) -> Result<Self> {
        Self::aimed_at(BLOCKS, problem)
    }

    /// Plans for another number of blocks, at least one. With few blocks each of them takes many
    /// steps even in a small problem, which tests need.
    ///
    /// # Errors
    /// As [`LaunchPlan::new`].
    pub fn aimed_at(blocks: usize, problem: &Problem) -> Result<Self> {
        Planner::new(problem, blocks).plan()
    }
}

/// True if tensor-core kernels exist for the shape: rows of whole fragments, a listed rank.
pub(super) fn tensor_core_shape(shape: &KronShape) -> bool {
    shape.rank().is_some()
        && TENSOR_CORE_RANKS.contains(&shape.width())
        && shape.c_in().is_multiple_of(8)
        && shape.b_out().is_multiple_of(8)
        && shape.a_len().is_multiple_of(4)
}

/// Returns the most tokens of a chunk on the SIMT tile: the kernels count a chunk's terms in 32 bits.
pub(super) fn longest_chunk(shape: &KronShape) -> usize {
    (i32::MAX as usize / shape.a_out().max(shape.a_in()).max(shape.width())).max(1)
}

/// Builds a plan step by step.
pub(super) struct Planner<'a> {
    pub problem: &'a Problem,
    pub blocks: usize,
    pub plan: LaunchPlan,
}

impl<'a> Planner<'a> {
    /// Starts with an empty plan whose splits aim at `blocks`.
    pub(super) fn new(problem: &'a Problem, blocks: usize) -> Self {
        let none = Parts::default();
        let plan = LaunchPlan {
            steps: ArrayVec::new(),
            t: Parts { offset: 0, count: 1 },
            t_slice: problem.shape.c_in(),
            t_longer: 0,
            v: none,
            dt: none,
            da: none,
            db: none,
            dc: none,
            u: none,
            order: none,
            segments: none,
            tile_rows: 0,
            a_row_groups: 1,
            rows_per_group: problem.shape.a_out(),
            workspace: 0,
            floor_bytes: 0,
            bytes: 0,
        };
        Self { problem, blocks: blocks.max(1), plan }
    }

    /// Builds the plan.
    fn plan(mut self) -> Result<LaunchPlan> {
        check_sizes(&self.problem.shape)?;
        check_rows(&self.problem.shape, self.problem.rows)?;
        if self.problem.rows > 0 {
            match self.problem.pass {
                Pass::Forward => {
                    self.down()?;
                    self.up()?;
                }
                Pass::Backward { dx } => self.backward(dx)?,
                Pass::Merge => self.merge()?,
            }
        }
        Ok(self.finish(1))
    }

    /// True if the tensor-core kernels can run: 16-bit elements in 16-byte rows.
    pub(super) fn uses_tensor_cores(&self) -> bool {
        let p = self.problem;
        p.dtype != Dtype::F32 && p.aligned && tensor_core_shape(&p.shape)
    }

    /// Number of blocks that gives every multiprocessor of the largest GPU one.
    pub(super) fn one_wave(&self) -> usize {
        self.blocks.div_ceil(2)
    }

    /// Adds `reduce`; its blocks divide θ evenly.
    pub(super) fn reduce(&mut self) -> Result<()> {
        use tiles::reduce::{RESIDENT, SHARED, WIDTH};
        let slots = (self.blocks * RESIDENT / 2).max(1);
        let blocks = self.problem.shape.params().div_ceil(WIDTH).min(slots);
        self.step("reduce", Tile::None, &[blocks], tiles::SIMT_THREADS, SHARED, Cols::ONE)?;
        self.set_resident(RESIDENT);
        Ok(())
    }

    fn backward(&mut self, dx: bool) -> Result<()> {
        if self.problem.rows <= SMALL_M {
            return match self.dy_on_tensor_cores() {
                true => self.tensor_core_small_m_backward(dx),
                false => self.small_m_backward(dx),
            };
        }
        self.over_dy()?;
        match self.dy_on_tensor_cores() {
            true => self.tensor_core_dx(dx)?,
            false => self.simt_dx(dx)?,
        }
        self.reduce()
    }

    /// Plans the backward pass over dY above small m: parts of dT, dA and dB.
    pub(super) fn over_dy(&mut self) -> Result<()> {
        if self.dy_on_tensor_cores() { self.tensor_core_dy() } else { self.simt_dy() }
    }

    fn merge(&mut self) -> Result<()> {
        let shape = self.problem.shape;
        let (threads, shared) = (tiles::SIMT_THREADS, tiles::merge_shared());
        let tiles = [shape.b_out().div_ceil(ROWS)];
        self.step("merge", Tile::Simt(64), &tiles, threads, shared, Cols::of(shape.c_in(), 64))
    }

    /// Reserves scratch for `count` parts of `len` elements, in whole units of [`RESERVED`].
    pub(super) fn reserve(&mut self, count: usize, len: usize) -> Parts {
        let offset = self.plan.workspace;
        // A saturated sum belongs to a plan with more blocks than a grid has, which is refused.
        let len = count.saturating_mul(len).checked_next_multiple_of(RESERVED).unwrap_or(usize::MAX);
        self.plan.workspace = offset.saturating_add(len);
        Parts { offset, count }
    }

    /// Sets the blocks of the last step that a multiprocessor holds.
    pub(super) fn set_resident(&mut self, resident: usize) {
        if let Some(step) = self.plan.steps.last_mut() {
            step.resident = resident as u32;
        }
    }

    /// Divides tiles of rows among the chunks of the last step.
    pub(super) fn set_tiles(&mut self, tiles: usize, chunks: usize, resident: usize) -> Result<()> {
        let Ok(count) = u32::try_from(tiles)
            .map_err(drop)
            .and_then(|t| if t <= MAX_GRID as u32 { Ok(t) } else { Err(()) })
        else {
            return Err(Error::Shape(format!(
                "{} rows of {} are {tiles} tiles, but a kernel counts at most {MAX_GRID}",
                self.problem.rows, self.problem.shape
            )));
        };
        if let Some(step) = self.plan.steps.last_mut() {
            (step.row_chunks, step.chunk_rows, step.tiles) = (chunks as u32, 0, count);
        }
        self.set_resident(resident);
        Ok(())
    }

    /// Adds a step on the SIMT tile.
    pub(super) fn simt_step(&mut self, pass: &str, grid: &[usize], cols: Cols) -> Result<()> {
        let (threads, shared) = (tiles::SIMT_THREADS, simt_shared(cols.width));
        self.step(pass, Tile::Simt(cols.width), grid, threads, shared, cols)
    }

    /// Adds a step; fails if a grid cannot have its blocks.
    pub(super) fn step(
        &mut self,
        pass: &str,
        tile: Tile,
        grid: &[usize],
        block: u32,
        shared: usize,
        cols: Cols,
    ) -> Result<()> {
        let blocks = grid.iter().fold(cols.tiles as u128, |a, &b| a.saturating_mul(b as u128));
        if blocks > MAX_GRID {
            return Err(Error::Shape(format!(
                "{pass} over {} rows of {} needs {blocks} blocks, but a grid has at most {MAX_GRID}",
                self.problem.rows, self.problem.shape
            )));
        }
        self.plan.steps.push(Step {
            kernel: name(pass, self.problem.dtype, tile),
            grid: blocks as u32,
            block,
            shared: shared as u32,
            col_tiles: cols.tiles as u32,
            cols: cols.width as u32,
            row_chunks: 1,
            chunk_rows: self.problem.rows as u64,
            tiles: 0,
            resident: tiles::SIMT_RESIDENT as u32,
            early: false,
        });
        Ok(())
    }

    /// Adds the byte counts of a call over a number of adapters.
    pub(super) fn finish(mut self, adapters: usize) -> LaunchPlan {
        let (p, shape) = (self.problem, &self.problem.shape);
        let (n, e, params) = (p.rows as u128, p.dtype.size() as u128, (shape.params() * adapters) as u128);
        let (d_in, d_out, t_row) = (shape.d_in() as u128, shape.d_out() as u128, shape.t_row() as u128);
        let writes = 1 + u128::from(p.accumulate); // of Y, dX or W
        self.plan.floor_bytes = match (n, p.pass) {
            (0, _) => 0,
            (_, Pass::Forward) => n * (e * (d_in + writes * d_out) + 4 * t_row) + 4 * params,
            (_, Pass::Backward { dx }) => {
                let dx = if dx { writes * d_in } else { 0 };
                n * (e * (d_out + d_in + dx) + 4 * t_row) + 3 * 4 * params
            }
            (_, Pass::Merge) => n * e * writes * d_in + 4 * params,
        };
        self.plan.bytes = self.plan.floor_bytes + 2 * 4 * self.plan.workspace as u128;
        // Where the launches after the first are a large part of the call's time, each starts early.
        let later = self.plan.steps.len().saturating_sub(1);
        let latency_counts = self.plan.floor_bytes < EARLY_BYTES * later as u128;
        self.plan.steps.iter_mut().skip(1).for_each(|step| step.early = latency_counts);
        self.plan
    }
}
