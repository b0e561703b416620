//! How a [`Plan`] is made: each pass's launches, grids and cuts.

use arrayvec::ArrayVec;

use crate::few;
use crate::names::{Tile, name};
use crate::plan::{Parts, Plan, Step};
use crate::problem::{Problem, check_sizes};
use crate::tiles::{self, FAST_RANKS, FEW_ROWS, ROWS, SHARED_LIMIT, general_cols, general_shared};
use kron_core::{Dtype, Error, Pass, Result};

/// Columns below which a slice of c_in is not cut further.
const MIN_SLICE: usize = 128;
/// Largest number of parts of a sum over tokens.
const MAX_CHUNKS: usize = 128;
const MAX_GRID: u128 = i32::MAX as u128;

/// A plan in the making.
pub(crate) struct Draft<'a> {
    problem: &'a Problem,
    blocks: usize,
    plan: Plan,
}

impl<'a> Draft<'a> {
    /// Nothing yet; splits aim at `blocks`.
    pub(crate) fn new(problem: &'a Problem, blocks: usize) -> Self {
        let none = Parts::default();
        let plan = Plan {
            steps: ArrayVec::new(),
            t: Parts { offset: 0, count: 1 },
            t_slice: problem.shape.c_in(),
            v: none,
            dt: none,
            da: none,
            db: none,
            dc: none,
            i_groups: 1,
            i_group: problem.shape.a_out(),
            workspace: 0,
            floor_bytes: 0,
            bytes: 0,
        };
        Self { problem, blocks, plan }
    }

    /// The whole plan.
    pub(crate) fn plan(mut self) -> Result<Plan> {
        check_sizes(&self.problem.shape)?;
        if self.problem.rows > 0 {
            match self.problem.pass {
                Pass::Forward => self.forward()?,
                Pass::Backward { dx } => self.backward(dx)?,
                Pass::Merge => self.merge()?,
            }
        }
        Ok(self.finish())
    }

    /// Whether the tensor-core kernels can run: 16-byte rows of whole fragments, a listed rank.
    fn fast(&self) -> bool {
        let (p, f) = (self.problem, &self.problem.shape);
        p.dtype != Dtype::F32
            && p.aligned
            && f.rank().is_some()
            && FAST_RANKS.contains(&f.width())
            && f.c_in().is_multiple_of(8)
            && f.b_out().is_multiple_of(8)
            && f.a_len().is_multiple_of(4)
    }

    fn forward(&mut self) -> Result<()> {
        let (p, f, fast) = (self.problem, self.problem.shape, self.fast());
        let (r, n, few) = (f.width(), p.rows, p.rows <= FEW_ROWS);
        let (stage, step, q_width, widest, sums) = if fast {
            let widest = tiles::up::WARP_COLS * tiles::up::WARPS;
            (tiles::down::COLS, few::fast_step(r), r, widest, n * tiles::padded(r))
        } else {
            (tiles::DEPTH, few::GENERAL_STEP, general_cols(r), 64, n * r.min(tiles::DEPTH))
        };
        // T: rows m = (token, j), and slices of c_in.
        let (tiles, q_tiles) = ((n * f.a_in()).div_ceil(ROWS), Cols::of(r, q_width));
        let slice = if few {
            let parts = few::parts(step * f.c_in().div_ceil(stage), n * f.t_row(), sums);
            even_columns(f.c_in(), parts.min(self.chip() / (tiles * q_tiles.tiles)), stage)
        } else {
            let wanted = self.blocks.div_ceil(tiles).clamp(1, f.c_in().div_ceil(MIN_SLICE));
            f.c_in().div_ceil(wanted).next_multiple_of(tiles::down::COLS)
        };
        let splits = f.c_in().div_ceil(slice);
        self.plan.t_slice = slice;
        self.plan.t.count = splits;
        if splits > 1 {
            self.plan.t = self.parts(splits, n * f.t_row());
        }
        // Y: tokens, i, and columns of B.
        let width = if few {
            let steps =
                f.a_out() * f.b_out().div_ceil(widest) * r.div_ceil(if fast { r } else { tiles::DEPTH });
            let own = f.a_out() * f.b_len() + n * f.d_out();
            let tiles = few::tiles(step * steps, own, splits * n * f.t_row()).min(self.chip());
            narrow(f.d_out() / tiles, tiles::up::WARP_COLS, widest)
        } else {
            widest
        };
        let cols = Cols { tiles: f.a_out() * f.b_out().div_ceil(width), width };
        let (down, up) = ([tiles, splits], [n.div_ceil(ROWS)]);
        if !fast {
            self.general("down", &down, q_tiles)?;
            let shared = tiles::general_up_shared();
            return self.step("up", Tile::General(64), &up, tiles::GENERAL_THREADS, shared, cols);
        }
        self.step("down", Tile::Fast(r), &down, tiles::down::THREADS, tiles::down::shared(r), q_tiles)?;
        // With few rows all of a block's threads add up T's parts.
        let warps = if few { tiles::up::WARPS } else { f.b_out().div_ceil(tiles::up::WARP_COLS) };
        let threads = 32 * warps.min(tiles::up::WARPS) as u32;
        self.step("up", Tile::Fast(r), &up, threads, tiles::up::shared(r), cols)
    }

    fn backward(&mut self, dx: bool) -> Result<()> {
        if self.fast() && self.fast_backward(dx)? {
            return Ok(());
        }
        if self.problem.rows <= FEW_ROWS {
            return self.few_backward(dx);
        }
        let (f, n) = (self.problem.shape, self.problem.rows);
        let (r, q_tiles) = (f.width(), Cols::of(f.width(), general_cols(f.width())));
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
        self.general("v", &[(n * f.a_out()).div_ceil(ROWS)], q_tiles)?;
        self.step("dt", Tile::None, &[(n * f.t_row()).div_ceil(256)], tiles::GENERAL_THREADS, 0, Cols::ONE)?;
        let whole = self.plan.steps.len();
        if f.a_len() > 0 {
            let tiles = f.a_out().div_ceil(ROWS);
            let shared = general_shared(16);
            let cols = Cols::of(f.a_in(), 16);
            self.step("da", Tile::None, &[chunks, tiles], tiles::GENERAL_THREADS, shared, cols)?;
        }
        if f.b_len() > 0 {
            self.general("db", &[chunks, f.b_out().div_ceil(ROWS)], q_tiles)?;
        }
        self.general("dc", &[chunks, f.c_in().div_ceil(ROWS)], q_tiles)?;
        for step in &mut self.plan.steps[whole..] {
            (step.row_chunks, step.chunk_rows) = (chunks as u32, chunk as u64);
        }
        if dx {
            self.general("dx", &[(n * f.a_in()).div_ceil(ROWS)], Cols::of(f.c_in(), 64))?;
        }
        self.reduce()
    }

    /// `dy` and `dx` on the general tile: what each part is made of follows from the number of parts.
    fn few_backward(&mut self, dx: bool) -> Result<()> {
        let (f, n) = (self.problem.shape, self.problem.rows);
        let q_tiles = Cols::of(f.width(), tiles::few::COLS);
        // Parts of dT: some rows of A each, then some columns of B; a full inner factor's are those of q.
        let most = few::general_dt(f.d_out(), n * f.t_row()).clamp(1, (self.blocks / q_tiles.tiles).max(1));
        let groups = even(f.a_out(), most);
        let slices = match f.b_len() {
            0 => 1,
            _ => even(f.b_out(), (most / groups).min(f.b_out().div_ceil(tiles::DEPTH))),
        };
        (self.plan.i_groups, self.plan.i_group) = (groups, f.a_out().div_ceil(groups));
        self.plan.dt = self.parts(groups * slices, n * f.t_row());
        if f.a_len() > 0 {
            self.plan.da = self.parts(slices * q_tiles.tiles, f.a_len());
        }
        let mut blocks = groups * slices;
        if f.b_len() > 0 {
            // Parts of dB: enough to fill the chip, but a whole step each.
            let tiles = f.b_out().div_ceil(ROWS);
            let most =
                (n * f.a_out()).div_ceil(tiles::DEPTH).min((self.blocks / (tiles * q_tiles.tiles)).max(1));
            self.plan.db = self.parts(even(f.a_out(), most), f.b_len());
            blocks += tiles * self.plan.db.count;
        }
        let tile = Tile::General(tiles::few::COLS);
        self.step("dy", tile, &[blocks], tiles::GENERAL_THREADS, tiles::few::dy_shared(), q_tiles)?;
        let tiles_of_m = if dx { (n * f.a_in()).div_ceil(ROWS) } else { 0 };
        let blocks = f.width().div_ceil(ROWS) + tiles_of_m;
        let (threads, shared) = (tiles::GENERAL_THREADS, tiles::few::dx_shared());
        self.step("dx", tile, &[blocks], threads, shared, Cols::of(f.c_in(), tiles::few::COLS))
    }

    /// `dy`, `dx` and, beyond few rows, `reduce`; false when T's row or A is too
    /// large for a block's shared memory.
    fn fast_backward(&mut self, dx: bool) -> Result<bool> {
        let (f, n) = (self.problem.shape, self.problem.rows);
        let (r, few) = (f.width(), n <= FEW_ROWS);
        let m = n * f.a_in();
        // Over dY: chunks of tokens first, for their parts are small; then groups of i, then columns.
        let (tiles, widest) = (n.div_ceil(tiles::dy::rows(r)), tiles::dy::COLS);
        let cols = f.b_out().div_ceil(widest);
        let per_chunk = tiles.div_ceil(self.blocks.div_ceil(cols).min(MAX_CHUNKS));
        let chunks = tiles.div_ceil(per_chunk);
        let parts = if few {
            let work = few::fast_step(r) * f.a_out() * cols;
            few::parts(work, n * f.t_row(), m.min(ROWS) * tiles::padded(r)).min(self.chip() / chunks)
        } else {
            self.blocks.div_ceil(chunks)
        };
        let mut group = f.a_out().div_ceil(parts.div_ceil(cols).clamp(1, f.a_out()));
        while group > 1 && tiles::dy::shared(r, f.a_in(), group) > SHARED_LIMIT {
            group = group.div_ceil(2);
        }
        let groups = f.a_out().div_ceil(group);
        let width = if few { even_columns(f.b_out(), (parts / groups).max(cols), widest) } else { widest };
        let cols = Cols::of(f.b_out(), width);
        let shared = tiles::dy::shared(r, f.a_in(), group);
        if shared > SHARED_LIMIT {
            return Ok(false);
        }
        (self.plan.i_groups, self.plan.i_group) = (groups, group);
        self.plan.dt = self.parts(groups * cols.tiles, n * f.t_row());
        if f.a_len() > 0 {
            self.plan.da = self.parts(chunks * cols.tiles, f.a_len());
        }
        self.plan.db = self.parts(chunks * groups, f.b_len());
        self.step("dy", Tile::Fast(r), &[groups, chunks], tiles::dy::THREADS, shared, cols)?;
        self.chunks(chunks, per_chunk * tiles::dy::rows(r));
        // Over X: rows m = (token, j).
        let (tiles, widest) = (m.div_ceil(ROWS), tiles::dx::COLS);
        let (threads, shared) = (tiles::dx::THREADS, tiles::dx::shared(r));
        if few {
            // One block of a column tile has dC, the others a tile of dX each.
            let blocks = 1 + if dx { tiles } else { 0 };
            let loads = self.plan.dt.count * n * f.t_row() * if dx { 2 } else { 1 };
            let work = few::fast_step(r) * f.c_in().div_ceil(widest);
            let cols = few::tiles(work, f.c_len() + n * f.d_in(), loads).min(self.chip() / blocks);
            let cols = Cols::of(f.c_in(), narrow(f.c_in() / cols.max(1), 32, widest));
            self.step("dx", Tile::Fast(r), &[blocks], threads, shared, cols)?;
            self.chunks(blocks, ROWS);
            return Ok(true);
        }
        let cols = Cols::of(f.c_in(), widest);
        let per_chunk = tiles.div_ceil(self.blocks.div_ceil(cols.tiles).min(MAX_CHUNKS));
        let chunks = tiles.div_ceil(per_chunk);
        self.plan.dc = self.parts(chunks, f.c_len());
        self.step("dx", Tile::Fast(r), &[chunks], threads, shared, cols)?;
        self.chunks(chunks, per_chunk * ROWS);
        self.reduce()?;
        Ok(true)
    }

    /// Blocks that give every multiprocessor of the largest chip one.
    fn chip(&self) -> usize {
        self.blocks.div_ceil(2).max(1)
    }

    fn reduce(&mut self) -> Result<()> {
        let blocks = self.problem.shape.params().div_ceil(256);
        self.step("reduce", Tile::None, &[blocks], tiles::GENERAL_THREADS, 0, Cols::ONE)
    }

    fn merge(&mut self) -> Result<()> {
        let f = self.problem.shape;
        let (threads, shared) = (tiles::GENERAL_THREADS, tiles::merge_shared());
        let tiles = [f.b_out().div_ceil(ROWS)];
        self.step("merge", Tile::General(64), &tiles, threads, shared, Cols::of(f.c_in(), 64))
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

    fn general(&mut self, pass: &str, grid: &[usize], cols: Cols) -> Result<()> {
        let (threads, shared) = (tiles::GENERAL_THREADS, general_shared(cols.width));
        self.step(pass, Tile::General(cols.width), grid, threads, shared, cols)
    }

    fn step(
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
        });
        Ok(())
    }

    fn finish(mut self) -> Plan {
        let (p, f) = (self.problem, &self.problem.shape);
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

/// Column tiles of a launch, and how wide they are.
#[derive(Clone, Copy)]
struct Cols {
    tiles: usize,
    width: usize,
}

impl Cols {
    /// Blocks that share no rows.
    const ONE: Self = Self { tiles: 1, width: 0 };

    /// As many as `total` columns take.
    fn of(total: usize, width: usize) -> Self {
        Self { tiles: total.div_ceil(width), width }
    }
}

/// Columns of each of at most `parts` ranges of `total`: whole stages of a kernel, or less than
/// one, in steps of the tensor cores' 16.
fn even_columns(total: usize, parts: usize, stage: usize) -> usize {
    let columns = total.div_ceil(parts.max(1));
    columns.next_multiple_of(if columns > stage { stage } else { 16 })
}

/// The number of whole warps' columns that is nearest to `columns`: at least one warp's, at most `widest`.
fn narrow(columns: usize, warp: usize, widest: usize) -> usize {
    ((columns + warp / 2) / warp * warp).clamp(warp, widest)
}

/// How many of at most `parts` equal ranges of `total` have something in them.
fn even(total: usize, parts: usize) -> usize {
    total.div_ceil(total.div_ceil(parts))
}
