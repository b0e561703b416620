//! The backward pass on tensor cores: `dy`, `dx` and, above small m, `reduce`.

use super::columns::{Cols, even_columns, narrow};
use super::cost;
use super::grid::{Chip, divisors, step_bytes, widths};
use super::planner::{MAX_CHUNKS, Planner};
use crate::names::Tile;
use crate::tiles::{self, ROWS};
use kron_core::{KronShape, Result};

/// The division of `dy`'s work.
#[derive(Clone, Copy)]
struct Division {
    width: usize,
    chunks: usize,
    groups: usize,
}

/// Returns the least number of groups of A's rows whose shared memory fits: equal groups unless
/// those would be many more. 0 if not even one row fits.
pub(super) fn least_groups(shape: &KronShape) -> usize {
    let max = tiles::dy::max_group(shape.width(), shape.a_in());
    if max == 0 {
        return 0;
    }
    let need = shape.a_out().div_ceil(max);
    divisors(shape.a_out()).filter(|&g| g >= need && g <= 4 * need).min().unwrap_or(need)
}

impl Planner<'_> {
    /// True if `dy` runs on tensor cores: a row of T and A fits into a block's shared memory.
    pub(super) fn dy_on_tensor_cores(&self) -> bool {
        self.uses_tensor_cores() && least_groups(&self.problem.shape) > 0
    }

    /// Plans `dy` and `dx` at small m.
    pub(super) fn tensor_core_small_m_backward(&mut self, dx: bool) -> Result<()> {
        self.small_m_dy()?;
        self.small_m_dx(dx)
    }

    /// Plans `dy` above small m.
    pub(super) fn tensor_core_dy(&mut self) -> Result<()> {
        let division = self.divide_dy();
        self.dy(division)
    }

    /// Plans `dy` at small m by the cost of the sums of dT's parts.
    fn small_m_dy(&mut self) -> Result<()> {
        let (shape, n, r) = (self.problem.shape, self.problem.rows, self.problem.shape.width());
        let (chunks, widest) = (n.div_ceil(tiles::dy::rows(r)), tiles::dy::COLS);
        let cols = shape.b_out().div_ceil(widest);
        let work = cost::tensor_core_step(r) * shape.a_out() * cols;
        let sums = (n * shape.a_in()).min(ROWS) * tiles::padded(r);
        let parts = cost::parts(work, n * shape.t_row(), sums).min(self.one_wave() / chunks);
        let mut group = shape.a_out().div_ceil(parts.div_ceil(cols).clamp(1, shape.a_out()));
        while group > tiles::dy::max_group(r, shape.a_in()) {
            group = group.div_ceil(2);
        }
        let groups = shape.a_out().div_ceil(group);
        let width = even_columns(shape.b_out(), (parts / groups).max(cols), widest);
        self.dy(Division { width, chunks, groups })
    }

    /// Returns the cheapest division of `dy` above small m.
    fn divide_dy(&self) -> Division {
        let (shape, n, r) = (self.problem.shape, self.problem.rows, self.problem.shape.width());
        let (rows, chip) = (tiles::dy::rows(r), Chip::new(self.blocks, tiles::dy::resident(r)));
        let (tiles, least) = (n.div_ceil(rows), least_groups(&shape));
        let max_chunks = tiles.min(MAX_CHUNKS);
        let mut best = (u128::MAX, Division { width: tiles::dy::COLS, chunks: 1, groups: least });
        let groups = std::iter::once(least).chain(divisors(shape.a_out()).filter(|&g| g > least));
        for groups in groups {
            let columns = tiles::dy::columns(r, shape.a_out(), shape.a_in(), groups);
            let instructions = 8 * tiles::dy::instructions(r, columns);
            for width in widths(shape.b_out(), tiles::dy::COLS, 32) {
                let cols = shape.b_out().div_ceil(width);
                let plain = groups == least && width == tiles::dy::COLS;
                for target in chip.targets() {
                    let chunks = (target / (cols * groups)).clamp(1, max_chunks);
                    let grid = cols * groups * chunks;
                    // Many parts of dT only where the tokens are few: see `scratch`.
                    if !plain && (grid > chip.most() || 2 * chunks < max_chunks) {
                        continue;
                    }
                    let step = step_bytes(2 * rows * width, instructions);
                    let steps = tiles.div_ceil(chunks) * shape.a_out().div_ceil(groups);
                    let (dt, db) = (groups * cols * n * shape.t_row(), chunks * groups * shape.b_len());
                    let cost = chip.cost(grid, steps, step, 8 * dt.saturating_add(db));
                    if cost < best.0 {
                        best = (cost, Division { width, chunks, groups });
                    }
                }
            }
        }
        best.1
    }

    /// Adds `dy`.
    fn dy(&mut self, by: Division) -> Result<()> {
        let (shape, n, r) = (self.problem.shape, self.problem.rows, self.problem.shape.width());
        let cols = Cols::of(shape.b_out(), by.width);
        let group = shape.a_out().div_ceil(by.groups);
        (self.plan.a_row_groups, self.plan.rows_per_group) = (by.groups, group);
        self.plan.dt = self.reserve(by.groups * cols.tiles, n * shape.t_row());
        if shape.a_len() > 0 {
            self.plan.da = self.reserve(by.chunks * cols.tiles, shape.a_len());
        }
        self.plan.db = self.reserve(by.chunks * by.groups, shape.b_len());
        let columns = tiles::dy::columns(r, shape.a_out(), shape.a_in(), by.groups);
        let tile = [Tile::TensorCore(r), Tile::OneColumn(r), Tile::TwoColumns(r)][columns];
        let shared = tiles::dy::shared(r, shape.a_in(), group, columns);
        self.step("dy", tile, &[by.groups, by.chunks], tiles::dy::THREADS, shared, cols)?;
        self.set_tiles(n.div_ceil(tiles::dy::rows(r)), by.chunks, tiles::dy::resident(r))
    }

    /// Plans `dx` at small m: one block of a column tile computes dC, each other one a tile of dX.
    fn small_m_dx(&mut self, dx: bool) -> Result<()> {
        let (shape, n, r) = (self.problem.shape, self.problem.rows, self.problem.shape.width());
        let (tiles, widest) = (tiles::dx::tiles(n, shape.a_in()), tiles::dx::COLS);
        let blocks = 1 + if dx { tiles } else { 0 };
        let loads = self.plan.dt.count * n * shape.t_row() * if dx { 2 } else { 1 };
        let work = cost::tensor_core_step(r) * shape.c_in().div_ceil(widest);
        let cols =
            cost::column_tiles(work, shape.c_len() + n * shape.d_in(), loads).min(self.one_wave() / blocks);
        let cols = Cols::of(shape.c_in(), narrow(shape.c_in() / cols.max(1), 32, widest));
        let shared = tiles::dx::shared(r, true);
        self.step("dx", Tile::SmallM(r), &[blocks], tiles::dx::THREADS, shared, cols)?;
        self.set_tiles(tiles, blocks, 1)
    }

    /// Plans `dx` above small m.
    pub(super) fn tensor_core_dx(&mut self, dx: bool) -> Result<()> {
        let (shape, n, r) = (self.problem.shape, self.problem.rows, self.problem.shape.width());
        let (tiles, chip) =
            (tiles::dx::tiles(n, shape.a_in()), Chip::new(self.blocks, tiles::dx::resident(r)));
        let streams = 1 + if dx { 1 + usize::from(self.problem.accumulate) } else { 0 };
        let mut best = (u128::MAX, tiles::dx::COLS, 1);
        for width in widths(shape.c_in(), tiles::dx::COLS, 32) {
            let cols = shape.c_in().div_ceil(width);
            for target in chip.targets() {
                let chunks = (target / cols).clamp(1, tiles.min(MAX_CHUNKS));
                let grid = cols * chunks;
                if width < tiles::dx::COLS && grid > chip.most() {
                    continue;
                }
                let step = step_bytes(2 * ROWS * width * streams, 8 * (450 + 8 * r));
                let cost = chip.cost(grid, tiles.div_ceil(chunks), step, 8 * chunks * shape.c_len());
                if cost < best.0 {
                    best = (cost, width, chunks);
                }
            }
        }
        let (_, width, chunks) = best;
        self.plan.dc = self.reserve(chunks, shape.c_len());
        let (cols, shared) = (Cols::of(shape.c_in(), width), tiles::dx::shared(r, false));
        self.step("dx", Tile::TensorCore(r), &[chunks], tiles::dx::THREADS, shared, cols)?;
        self.set_tiles(tiles, chunks, tiles::dx::resident(r))
    }
}
