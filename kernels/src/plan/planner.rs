//! The planner: each pass's launches, grids and splits.

use arrayvec::ArrayVec;

use super::columns::{Cols, even, even_columns, narrow};
use super::cost;
use super::grid::{Chip, step_bytes};
use super::launches::{LaunchPlan, Parts, Step};
use crate::names::{Tile, name};
use crate::problem::{Problem, check_rows, check_sizes};
use crate::tiles::{self, ROWS, SMALL_M, TENSOR_CORE_RANKS, simt_cols, simt_shared};
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
const EARLY_BYTES: u128 = 32 << 20;
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
                Pass::Forward => self.forward()?,
                Pass::Backward { dx } => self.backward(dx)?,
                Pass::Merge => self.merge()?,
            }
        }
        Ok(self.finish(1))
    }

    /// True if the tensor-core kernels can run: 16-bit elements in 16-byte rows.
    fn uses_tensor_cores(&self) -> bool {
        let p = self.problem;
        p.dtype != Dtype::F32 && p.aligned && tensor_core_shape(&p.shape)
    }

    fn forward(&mut self) -> Result<()> {
        let (p, shape, tensor_cores) = (self.problem, self.problem.shape, self.uses_tensor_cores());
        let (r, n, small_m) = (shape.width(), p.rows, p.rows <= SMALL_M);
        let (stage, step, q_width, widest, sums) = if tensor_cores {
            let widest = tiles::up::WARP_COLS * tiles::up::WARPS;
            (tiles::down::COLS, cost::tensor_core_step(r), r, widest, n * tiles::padded(r))
        } else {
            (tiles::DEPTH, cost::SIMT_STEP, simt_cols(r), 64, n * r.min(tiles::DEPTH))
        };
        // T: rows m = (token, j), and slices of c_in.
        let (tiles, q_tiles) = ((n * shape.a_in()).div_ceil(ROWS), Cols::of(r, q_width));
        let slice = if small_m {
            let parts = cost::parts(step * shape.c_in().div_ceil(stage), n * shape.t_row(), sums);
            even_columns(shape.c_in(), parts.min(self.one_wave() / (tiles * q_tiles.tiles)), stage)
        } else if tensor_cores {
            self.slice(tiles)
        } else {
            let wanted = self.blocks.div_ceil(tiles).clamp(1, shape.c_in().div_ceil(MIN_SLICE));
            shape.c_in().div_ceil(wanted).next_multiple_of(tiles::down::COLS)
        };
        let splits = shape.c_in().div_ceil(slice);
        self.plan.t_slice = slice;
        self.plan.t.count = splits;
        if splits > 1 {
            self.plan.t = self.reserve(splits, n * shape.t_row());
        }
        // Y: tokens, i, and columns of B.
        let width = if small_m {
            let steps = shape.a_out()
                * shape.b_out().div_ceil(widest)
                * r.div_ceil(if tensor_cores { r } else { tiles::DEPTH });
            let own = shape.a_out() * shape.b_len() + n * shape.d_out();
            let tiles =
                cost::column_tiles(step * steps, own, splits * n * shape.t_row()).min(self.one_wave());
            narrow(shape.d_out() / tiles, tiles::up::WARP_COLS, widest)
        } else {
            widest
        };
        let cols = Cols { tiles: shape.a_out() * shape.b_out().div_ceil(width), width };
        let (down, up) = ([tiles, splits], [n.div_ceil(ROWS)]);
        if !tensor_cores {
            self.simt_step("down", &down, q_tiles)?;
            let shared = tiles::simt_up_shared();
            return self.step("up", Tile::Simt(64), &up, tiles::SIMT_THREADS, shared, cols);
        }
        self.step("down", Tile::TensorCore(r), &down, tiles::down::THREADS, tiles::down::shared(r), q_tiles)?;
        self.set_resident(tiles::down::resident(r));
        // At small m all threads of a block add up T's parts.
        let warps = if small_m { tiles::up::WARPS } else { shape.b_out().div_ceil(tiles::up::WARP_COLS) };
        let warps = warps.min(tiles::up::WARPS);
        let tile = if small_m { Tile::SmallM(r) } else { Tile::TensorCore(r) };
        self.step("up", tile, &up, 32 * warps as u32, tiles::up::shared(r, small_m), cols)?;
        self.set_resident(if small_m { 1 } else { tiles::up::resident(r, warps) });
        Ok(())
    }

    /// Returns the columns of a slice of c_in in `down` on tensor cores above small m.
    fn slice(&self, tiles: usize) -> usize {
        let (shape, r) = (self.problem.shape, self.problem.shape.width());
        let (chip, columns) = (Chip::new(self.blocks, tiles::down::resident(r)), tiles::down::COLS);
        let mut best = (u128::MAX, shape.c_in());
        for target in chip.targets() {
            let wanted = (target / tiles).clamp(1, shape.c_in().div_ceil(columns));
            // Equal slices: the last is at most one stage shorter.
            let slice_of = |wanted| shape.c_in().div_ceil(wanted).next_multiple_of(columns);
            let equal = |slice: usize| (shape.c_in() - 1) % slice + 1 + columns > slice - columns;
            let Some(slice) = (1..=wanted).rev().map(slice_of).find(|&slice| equal(slice)) else { continue };
            let slices = shape.c_in().div_ceil(slice);
            let step = step_bytes(2 * ROWS * columns, 4 * (90 + 4 * r));
            // Parts of T are written once, and read by the column tiles of `up`.
            let parts = if slices > 1 { 12 * slices * self.problem.rows * shape.t_row() } else { 0 };
            let cost = chip.cost(tiles * slices, slice / columns, step, parts);
            if cost < best.0 {
                best = (cost, slice);
            }
        }
        best.1
    }

    fn backward(&mut self, dx: bool) -> Result<()> {
        if self.uses_tensor_cores() && self.tensor_core_backward(dx)? {
            return Ok(());
        }
        if self.problem.rows <= SMALL_M {
            return self.small_m_backward(dx);
        }
        let (shape, n) = (self.problem.shape, self.problem.rows);
        let (r, q_tiles) = (shape.width(), Cols::of(shape.width(), simt_cols(shape.width())));
        let chunk = n.div_ceil(SIMT_CHUNKS).next_multiple_of(ROWS).min(n).min(longest_chunk(&shape));
        let chunks = n.div_ceil(chunk);
        self.plan.v = self.reserve(1, n * shape.a_out() * r);
        self.plan.dt = self.reserve(1, n * shape.t_row());
        if shape.a_len() > 0 {
            self.plan.da = self.reserve(chunks, shape.a_len());
        }
        if shape.b_len() > 0 {
            self.plan.db = self.reserve(chunks, shape.b_len());
        }
        self.plan.dc = self.reserve(chunks, shape.c_len());
        self.simt_step("v", &[(n * shape.a_out()).div_ceil(ROWS)], q_tiles)?;
        self.step("dt", Tile::None, &[(n * shape.t_row()).div_ceil(256)], tiles::SIMT_THREADS, 0, Cols::ONE)?;
        let whole = self.plan.steps.len();
        if shape.a_len() > 0 {
            let tiles = shape.a_out().div_ceil(ROWS);
            let shared = simt_shared(16);
            let cols = Cols::of(shape.a_in(), 16);
            self.step("da", Tile::None, &[chunks, tiles], tiles::SIMT_THREADS, shared, cols)?;
        }
        if shape.b_len() > 0 {
            self.simt_step("db", &[chunks, shape.b_out().div_ceil(ROWS)], q_tiles)?;
        }
        self.simt_step("dc", &[chunks, shape.c_in().div_ceil(ROWS)], q_tiles)?;
        for step in &mut self.plan.steps[whole..] {
            (step.row_chunks, step.chunk_rows) = (chunks as u32, chunk as u64);
        }
        if dx {
            self.simt_step("dx", &[(n * shape.a_in()).div_ceil(ROWS)], Cols::of(shape.c_in(), 64))?;
        }
        self.reduce()
    }

    /// Plans `dy` and `dx` on the SIMT tile; the number of parts determines their ranges.
    fn small_m_backward(&mut self, dx: bool) -> Result<()> {
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
    fn simt_step(&mut self, pass: &str, grid: &[usize], cols: Cols) -> Result<()> {
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
