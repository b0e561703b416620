//! [`Plan`]: which kernels a problem runs, with which grids and which scratch.
//!
//! A pure function of the [`Problem`]; it asks no device, so equal problems
//! run equal sums in an equal order on every GPU.

use std::fmt;

use arrayvec::{ArrayString, ArrayVec};

use crate::tiles::{self, FAST_RANKS, FEW_ROWS, ROWS, SHARED_LIMIT, general_cols, general_shared};
use crate::{Arch, Dtype, Error, Factors, Pass, Problem, Result};

/// Blocks that fill the largest chip twice: what splits aim at.
pub const BLOCKS: usize = 264;
/// Columns below which a slice of c_in is not cut further.
const MIN_SLICE: usize = 128;
/// Largest number of parts of a sum over tokens.
const MAX_CHUNKS: usize = 128;
const MAX_GRID: u128 = i32::MAX as u128;

/// One kernel launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's name, `kron_{pass}_{dtype}_{tile}`.
    pub kernel: ArrayString<32>,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Column tiles: the fast index of the grid.
    pub col_tiles: u32,
    /// Chunks of a sum over tokens.
    pub row_chunks: u32,
    /// Rows of a chunk.
    pub chunk_rows: u64,
}

/// Where a sum's parts lie in the workspace: offset in numbers, and how many parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// First number.
    pub offset: usize,
    /// Parts; 0 when the problem needs none, or a kernel adds the sum to the gradient itself.
    pub count: usize,
}

/// The launches of one call, in order, and the scratch they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The launches; none when there is nothing to compute.
    pub steps: ArrayVec<Step, 8>,
    /// Parts of T; one part means that `down` writes T itself.
    pub t: Parts,
    /// Columns of one slice of c_in.
    pub t_slice: usize,
    /// V, on the general tile.
    pub v: Parts,
    /// Parts of dT.
    pub dt: Parts,
    /// Parts of dA.
    pub da: Parts,
    /// Parts of dB.
    pub db: Parts,
    /// Parts of dC.
    pub dc: Parts,
    /// Groups of A's rows in `dy`, and rows of a group.
    pub i_groups: usize,
    /// Rows of A in one group.
    pub i_group: usize,
    /// Float32 numbers of scratch.
    pub workspace: usize,
    /// Bytes that any implementation has to move: operands once.
    pub floor_bytes: u128,
    /// Those and the round trips of the scratch, were none of it cached.
    pub bytes: u128,
}

impl Plan {
    /// Time in µs below which `arch` cannot finish: floor bytes over its copy
    /// rate. A prediction, not a measurement.
    pub fn floor_us(&self, arch: &Arch) -> f64 {
        self.floor_bytes as f64 / arch.bytes_per_us
    }

    /// The plan of a problem.
    ///
    /// # Errors
    /// More blocks than a grid can have, with the numbers.
    pub fn new(problem: &Problem) -> Result<Self> {
        Self::aimed_at(BLOCKS, problem)
    }

    /// The plan that aims at another number of blocks: with few, a block's
    /// walk is long even in a small problem, as tests want it.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn aimed_at(blocks: usize, problem: &Problem) -> Result<Self> {
        let mut draft = Draft::new(problem, blocks);
        if problem.rows > 0 {
            match problem.pass {
                Pass::Forward => draft.forward()?,
                Pass::Backward { dx } => draft.backward(dx)?,
                Pass::Merge => draft.merge()?,
            }
        }
        Ok(draft.finish())
    }
}

/// Scratch, in numbers, that covers every dtype and alignment of a call.
///
/// # Errors
/// As [`Plan::new`].
pub fn workspace_len(factors: Factors, pass: Pass, rows: usize) -> Result<usize> {
    let mut most = 0;
    for (dtype, aligned) in [(Dtype::F32, false), (Dtype::Bf16, true)] {
        let plan = Plan::new(&Problem { factors, dtype, pass, rows, accumulate: true, aligned })?;
        most = most.max(plan.workspace);
    }
    Ok(most)
}

struct Draft<'a> {
    problem: &'a Problem,
    blocks: usize,
    plan: Plan,
}

impl<'a> Draft<'a> {
    fn new(problem: &'a Problem, blocks: usize) -> Self {
        let none = Parts::default();
        let plan = Plan {
            steps: ArrayVec::new(),
            t: Parts { offset: 0, count: 1 },
            t_slice: problem.factors.c_in(),
            v: none,
            dt: none,
            da: none,
            db: none,
            dc: none,
            i_groups: 1,
            i_group: problem.factors.a_out(),
            workspace: 0,
            floor_bytes: 0,
            bytes: 0,
        };
        Self { problem, blocks, plan }
    }

    /// Whether the tensor-core kernels can run: 16-byte rows of whole fragments, a listed rank.
    fn fast(&self) -> bool {
        let (p, f) = (self.problem, &self.problem.factors);
        p.dtype != Dtype::F32
            && p.aligned
            && f.low_rank()
            && FAST_RANKS.contains(&f.rank())
            && f.c_in().is_multiple_of(8)
            && f.b_out().is_multiple_of(8)
            && f.a_len().is_multiple_of(4)
    }

    fn forward(&mut self) -> Result<()> {
        let (p, f, fast) = (self.problem, self.problem.factors, self.fast());
        let (r, n) = (f.rank(), p.rows);
        let tiles = (n * f.a_in()).div_ceil(ROWS);
        let wanted = self.blocks.div_ceil(tiles).clamp(1, f.c_in().div_ceil(MIN_SLICE));
        let slice = f.c_in().div_ceil(wanted).next_multiple_of(tiles::down::COLS);
        let splits = f.c_in().div_ceil(slice);
        self.plan.t_slice = slice;
        self.plan.t.count = splits;
        if splits > 1 {
            self.plan.t = self.parts(splits, n * f.t_row());
        }
        let grid = [tiles, splits];
        if fast {
            self.step("down", Tile::Fast(r), &grid, tiles::down::THREADS, tiles::down::shared(r), 1)?;
            let columns = tiles::up::WARP_COLS * tiles::up::WARPS;
            let warps = f.b_out().div_ceil(tiles::up::WARP_COLS).min(tiles::up::WARPS);
            let cols = f.a_out() * f.b_out().div_ceil(columns);
            let shared = tiles::up::shared(r);
            self.step("up", Tile::Fast(r), &[n.div_ceil(ROWS)], 32 * warps as u32, shared, cols)
        } else {
            self.general("down", general_cols(r), &grid, r.div_ceil(general_cols(r)))?;
            self.general("up", 64, &[n.div_ceil(ROWS)], f.a_out() * f.b_out().div_ceil(64))
        }
    }

    fn backward(&mut self, dx: bool) -> Result<()> {
        if self.fast() && self.fast_backward(dx)? {
            return Ok(());
        }
        let (f, n) = (self.problem.factors, self.problem.rows);
        let (r, cols) = (f.rank(), general_cols(f.rank()));
        let q_tiles = r.div_ceil(cols);
        // Sums over a chunk count their terms in 32 bits.
        let longest = (i32::MAX as usize / f.a_out().max(f.a_in()).max(r)).max(1);
        let chunk = n.div_ceil(32).next_multiple_of(ROWS).min(n).min(longest);
        let chunks = n.div_ceil(chunk);
        self.plan.v = self.parts(1, n * f.a_out() * r);
        self.plan.dt = self.parts(1, n * f.t_row());
        if f.a_len() > 0 {
            self.plan.da = self.parts(chunks, f.a_len());
        }
        if f.b_len() > 0 {
            self.plan.db = self.parts(chunks, f.b_len());
        }
        self.plan.dc = self.parts(chunks, f.c_len());
        self.general("v", cols, &[(n * f.a_out()).div_ceil(ROWS)], q_tiles)?;
        self.step("dt", Tile::None, &[(n * f.t_row()).div_ceil(256)], tiles::GENERAL_THREADS, 0, 1)?;
        let whole = self.plan.steps.len();
        if f.a_len() > 0 {
            let tiles = f.a_out().div_ceil(ROWS);
            let shared = general_shared(16);
            let cols = f.a_in().div_ceil(16);
            self.step("da", Tile::None, &[chunks, tiles], tiles::GENERAL_THREADS, shared, cols)?;
        }
        if f.b_len() > 0 {
            self.general("db", cols, &[chunks, f.b_out().div_ceil(ROWS)], q_tiles)?;
        }
        self.general("dc", cols, &[chunks, f.c_in().div_ceil(ROWS)], q_tiles)?;
        for step in &mut self.plan.steps[whole..] {
            (step.row_chunks, step.chunk_rows) = (chunks as u32, chunk as u64);
        }
        if dx {
            self.general("dx", 64, &[(n * f.a_in()).div_ceil(ROWS)], f.c_in().div_ceil(64))?;
        }
        self.reduce()
    }

    /// `dy`, `dx` and, beyond few rows, `reduce`; false when T's row or A is too
    /// large for a block's shared memory.
    fn fast_backward(&mut self, dx: bool) -> Result<bool> {
        let (f, n) = (self.problem.factors, self.problem.rows);
        let r = f.rank();
        // Over dY: chunks of tokens first, for their parts are small; then groups of i.
        let (tiles, cols) = (n.div_ceil(tiles::dy::rows(r)), f.b_out().div_ceil(tiles::dy::COLS));
        let per_chunk = tiles.div_ceil(self.blocks.div_ceil(cols).min(MAX_CHUNKS));
        let chunks = tiles.div_ceil(per_chunk);
        let group = f.a_out().div_ceil(self.blocks.div_ceil(cols * chunks).min(f.a_out()));
        let groups = f.a_out().div_ceil(group);
        let shared = tiles::dy::shared(r, f.a_in(), group);
        if shared > SHARED_LIMIT {
            return Ok(false);
        }
        (self.plan.i_groups, self.plan.i_group) = (groups, group);
        self.plan.dt = self.parts(groups * cols, n * f.t_row());
        if f.a_len() > 0 {
            self.plan.da = self.parts(chunks * cols, f.a_len());
        }
        self.plan.db = self.parts(chunks * groups, f.b_len());
        self.step("dy", Tile::Fast(r), &[groups, chunks], tiles::dy::THREADS, shared, cols)?;
        self.chunks(chunks, per_chunk * tiles::dy::rows(r));
        // Over X: rows m = (token, j).
        let (tiles, cols) = ((n * f.a_in()).div_ceil(ROWS), f.c_in().div_ceil(tiles::dx::COLS));
        let (threads, shared) = (tiles::dx::THREADS, tiles::dx::shared(r));
        if n <= FEW_ROWS {
            // One block of a column tile has dC, the others a tile of dX each.
            let blocks = 1 + if dx { tiles } else { 0 };
            self.step("dx", Tile::Fast(r), &[blocks], threads, shared, cols)?;
            self.chunks(blocks, ROWS);
            return Ok(true);
        }
        let per_chunk = tiles.div_ceil(self.blocks.div_ceil(cols).min(MAX_CHUNKS));
        let chunks = tiles.div_ceil(per_chunk);
        self.plan.dc = self.parts(chunks, f.c_len());
        self.step("dx", Tile::Fast(r), &[chunks], threads, shared, cols)?;
        self.chunks(chunks, per_chunk * ROWS);
        self.reduce()?;
        Ok(true)
    }

    fn reduce(&mut self) -> Result<()> {
        let blocks = self.problem.factors.params().div_ceil(256);
        self.step("reduce", Tile::None, &[blocks], tiles::GENERAL_THREADS, 0, 1)
    }

    fn merge(&mut self) -> Result<()> {
        let f = self.problem.factors;
        let (threads, shared) = (tiles::GENERAL_THREADS, tiles::merge_shared());
        let tiles = [f.b_out().div_ceil(ROWS)];
        self.step("merge", Tile::General(64), &tiles, threads, shared, f.c_in().div_ceil(64))
    }

    /// Scratch for `count` parts of `len` numbers, on a 256-byte boundary.
    fn parts(&mut self, count: usize, len: usize) -> Parts {
        let offset = self.plan.workspace;
        self.plan.workspace += (count * len).next_multiple_of(64);
        Parts { offset, count }
    }

    fn chunks(&mut self, chunks: usize, rows: usize) {
        if let Some(step) = self.plan.steps.last_mut() {
            (step.row_chunks, step.chunk_rows) = (chunks as u32, rows as u64);
        }
    }

    fn general(&mut self, pass: &str, width: usize, grid: &[usize], cols: usize) -> Result<()> {
        let (threads, shared) = (tiles::GENERAL_THREADS, general_shared(width));
        self.step(pass, Tile::General(width), grid, threads, shared, cols)
    }

    fn step(
        &mut self,
        pass: &str,
        tile: Tile,
        grid: &[usize],
        block: u32,
        shared: usize,
        cols: usize,
    ) -> Result<()> {
        let blocks = grid.iter().fold(cols as u128, |a, &b| a.saturating_mul(b as u128));
        if blocks > MAX_GRID {
            return Err(Error::Problem(format!(
                "{pass} over {} rows of {:?} needs {blocks} blocks, but a grid has at most {MAX_GRID}",
                self.problem.rows, self.problem.factors
            )));
        }
        let dtype = self.problem.dtype.name();
        let mut kernel = ArrayString::new();
        let written = match tile {
            Tile::General(width) => fmt::write(&mut kernel, format_args!("kron_{pass}_{dtype}_t{width}")),
            Tile::Fast(rank) => fmt::write(&mut kernel, format_args!("kron_{pass}_{dtype}_r{rank}")),
            Tile::None => fmt::write(&mut kernel, format_args!("kron_{pass}")),
        };
        debug_assert!(written.is_ok(), "the longest name, kron_reduce_bf16_r128, fits");
        self.plan.steps.push(Step {
            kernel,
            grid: blocks as u32,
            block,
            shared: shared as u32,
            col_tiles: cols as u32,
            row_chunks: 1,
            chunk_rows: self.problem.rows as u64,
        });
        Ok(())
    }

    fn finish(mut self) -> Plan {
        let (p, f) = (self.problem, &self.problem.factors);
        let (n, e, params) = (p.rows as u128, p.dtype.size() as u128, f.params() as u128);
        let (d_in, d_out, t_row) = (f.d_in() as u128, f.d_out() as u128, f.t_row() as u128);
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
        self.plan
    }
}

enum Tile {
    General(usize),
    Fast(usize),
    None,
}

impl fmt::Display for Plan {
    /// One line a launch, then scratch and bytes.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.steps {
            writeln!(out, "{:<22} grid {:>6} block {:>3} shared {:>6}", s.kernel, s.grid, s.block, s.shared)?;
        }
        writeln!(
            out,
            "parts: T {}, dT {}, dA {}, dB {}, dC {}; scratch {} numbers; floor {} bytes, with scratch {}",
            self.t.count,
            self.dt.count,
            self.da.count,
            self.db.count,
            self.dc.count,
            self.workspace,
            self.floor_bytes,
            self.bytes
        )
    }
}
