//! Calls over a group: several adapters on one X, joined so that X and dX are met once.
//!
//! The C's of all terms, one below the other, are the C of a stacked adapter. Its `down` and `dx` are those of all
//! terms; a term keeps its own `up`, `dy` and `reduce`, and three small kernels carry T and dT between them.

use arrayvec::ArrayVec;

use super::columns::Cols;
use super::launches::{LaunchPlan, Parts, Step};
use super::planner::{BLOCKS, EARLY_BYTES, Planner, RESERVED, tensor_core_shape};
use super::scratch::{over_dy_len, over_x_len, workspace_len};
use crate::names::Tile;
use crate::problem::{Problem, check_rows, check_sizes};
use crate::tiles::{ROWS, SMALL_M, TENSOR_CORE_RANKS, group};
use kron_core::{Dtype, KronShape, LayerDims, Pass, Result, Split};

/// Most terms of a joined call. One place of the kernels' list is for the padding of the rank.
pub const MAX_JOINED: usize = group::STACKED - 1;

/// The launches of a joined call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// The problem of the stacked adapter. Its rank may exceed that of all terms, and its A and B do not exist.
    pub stacked: Problem,
    /// Launches of the stacked adapter: `stack`, `down` and `split`, or `stack`, `join` and the passes over X. Its
    /// byte counts are those of the stacked problem, and of no call.
    pub over_x: LaunchPlan,
    /// Launches of each term: `up`, or the passes over dY and `reduce`.
    pub terms: ArrayVec<LaunchPlan, MAX_JOINED>,
    /// Offset of each term's scratch, in elements.
    pub at: ArrayVec<usize, MAX_JOINED>,
    /// C of all terms.
    pub c: Parts,
    /// T, or dT, of all terms.
    pub t: Parts,
    /// Scratch, in float32 elements.
    pub workspace: usize,
    /// Bytes of X and dX once, and of every other operand of every term, its Y or dY included.
    pub floor_bytes: u128,
}

impl GroupPlan {
    /// Plans a call over `terms`, with `x` for the pass, the rows, the dtype, the alignment of X and dX, and the
    /// treatment of dX. Of a term the shape counts, the alignment of its own operands, and the treatment of its Y.
    ///
    /// Returns `None` where the terms are to be computed one after the other: for a merge, for fewer than two terms
    /// and above [`MAX_JOINED`], for different a_in or c_in, up to [`SMALL_M`] rows, where the stacked rank has no
    /// kernel as fast as the terms' own, and where the launches and copies cost more than X saves.
    ///
    /// # Errors
    /// As [`LaunchPlan::new`].
    pub fn new(x: &Problem, terms: &[Problem]) -> Result<Option<Self>> {
        Self::aimed_at(BLOCKS, x, terms)
    }

    /// Plans for another number of blocks, at least one.
    ///
    /// # Errors
    /// As [`LaunchPlan::new`].
    pub fn aimed_at(blocks: usize, x: &Problem, terms: &[Problem]) -> Result<Option<Self>> {
        let pass = match x.pass {
            Pass::Forward => Pass::Forward,
            Pass::Backward { .. } => Pass::Backward { dx: false },
            Pass::Merge => return Ok(None),
        };
        let of_call = |term: &Problem| Problem { pass, rows: x.rows, dtype: x.dtype, ..*term };
        let terms: Vec<Problem> = terms.iter().map(of_call).collect();
        let rank = terms.iter().map(|term| term.shape.width()).fold(0, usize::saturating_add);
        let Some(shape) = stacked(x, &terms, rank) else { return Ok(None) };
        let stacked = Problem { shape, ..*x };
        if check_sizes(&shape).is_err()
            || check_rows(&shape, x.rows).is_err()
            || !pays(&stacked, &terms, blocks)
        {
            return Ok(None);
        }
        Self::joined(blocks, stacked, &terms, rank).map(Some)
    }

    fn joined(blocks: usize, stacked: Problem, terms: &[Problem], rank: usize) -> Result<Self> {
        let (shape, n) = (stacked.shape, stacked.rows);
        let all = terms.len() + usize::from(shape.width() > rank);
        let mut over = Planner::new(&stacked, blocks);
        let c = over.reserve(1, shape.c_len());
        let t = over.reserve(1, n * shape.t_row());
        let columns = [shape.c_in().div_ceil(group::THREADS as usize)];
        let rows = [(n * shape.a_in()).div_ceil(group::ROWS)];
        over.group_step("stack", &columns, all)?;
        match stacked.pass {
            Pass::Backward { dx } => {
                over.plan.dt = t;
                over.group_step("join", &rows, all)?;
                match over.uses_tensor_cores() && shape.a_in() <= ROWS {
                    true => over.tensor_core_dx(dx)?,
                    false => over.simt_dx(dx)?,
                }
            }
            Pass::Forward | Pass::Merge => {
                over.down()?;
                over.group_step("split", &rows, terms.len())?;
            }
        }
        let mut workspace = over.plan.workspace;
        let over_x = over.finish(1);
        let (mut plans, mut at) = (ArrayVec::new(), ArrayVec::new());
        for term in terms {
            check_sizes(&term.shape)?;
            check_rows(&term.shape, n)?;
            let mut alone = Planner::new(term, blocks);
            match term.pass {
                Pass::Backward { .. } => {
                    alone.over_dy()?;
                    alone.reduce()?;
                }
                Pass::Forward | Pass::Merge => alone.up()?,
            }
            at.push(workspace);
            workspace = workspace.saturating_add(alone.plan.workspace);
            plans.push(alone.finish(1));
        }
        let x_bytes = n as u128 * stacked.dtype.size() as u128 * shape.d_in() as u128;
        let dx = match stacked.pass {
            Pass::Backward { dx: true } => 1 + u128::from(stacked.accumulate),
            _ => 0,
        };
        // Each term's floor has an X of its own, and no dX.
        let own: u128 = plans.iter().map(|plan: &LaunchPlan| plan.floor_bytes - x_bytes).sum();
        let floor_bytes = own + (1 + dx) * x_bytes;
        let mut plan = Self { stacked, over_x, terms: plans, at, c, t, workspace, floor_bytes };
        let later = plan.steps().count() - 1;
        let early = floor_bytes < EARLY_BYTES * later as u128;
        let (over, terms) = (&mut plan.over_x.steps, &mut plan.terms);
        over.iter_mut()
            .skip(1)
            .chain(terms.iter_mut().flat_map(|t| &mut t.steps))
            .for_each(|s| s.early = early);
        Ok(plan)
    }

    /// Returns the launches in order, each with the number of its term, or `None` for the stacked adapter.
    pub fn steps(&self) -> impl Iterator<Item = (Option<usize>, &Step)> {
        // Backward: `stack`, then all passes over dY, those over X, and each term's `reduce`.
        let (first, last) = match self.stacked.pass {
            Pass::Backward { .. } => (1, 1),
            Pass::Forward | Pass::Merge => (self.over_x.steps.len(), 0),
        };
        let over = |steps: std::ops::Range<usize>| self.over_x.steps[steps].iter().map(|step| (None, step));
        let terms = move |last_ones: bool| {
            self.terms.iter().enumerate().flat_map(move |(k, plan)| {
                let (before, after) = plan.steps.split_at(plan.steps.len() - last);
                let part = if last_ones { after } else { before };
                part.iter().map(move |step| (Some(k), step))
            })
        };
        over(0..first).chain(terms(false)).chain(over(first..self.over_x.steps.len())).chain(terms(true))
    }
}

/// Returns the stacked adapter's shape, if the terms have one a_in and c_in and are few enough, and if its kernels
/// are as fast as the terms' own.
fn stacked(x: &Problem, terms: &[Problem], rank: usize) -> Option<KronShape> {
    let first = terms.first()?.shape;
    let (a_in, c_in) = (first.a_in(), first.c_in());
    let other = |term: &Problem| (term.shape.a_in(), term.shape.c_in()) != (a_in, c_in);
    if x.rows <= SMALL_M || !(2..=MAX_JOINED).contains(&terms.len()) || terms.iter().any(other) {
        return None;
    }
    let shape = |rank: usize| {
        // No kernel over X reads A or B, so that their rows are free: A has four, and B enough.
        let b_out = rank.next_multiple_of(8);
        KronShape::kron(LayerDims { d_out: 4 * b_out, d_in: a_in * c_in }, Split { a_out: 4, a_in }, rank)
            .ok()
    };
    let padded = TENSOR_CORE_RANKS.into_iter().find(|&padded| padded >= rank);
    let tensor_cores = x.dtype != Dtype::F32 && x.aligned && c_in.is_multiple_of(8);
    if let Some(stacked) = padded.filter(|_| tensor_cores).and_then(shape) {
        return Some(stacked);
    }
    // A term's own kernels on tensor cores are faster than the stack's on the SIMT tile.
    let fast =
        |term: &Problem| x.dtype != Dtype::F32 && x.aligned && term.aligned && tensor_core_shape(&term.shape);
    if terms.iter().any(fast) { None } else { shape(rank) }
}

/// True if what a joined call does not move is more than what its further launches and copies cost.
fn pays(stacked: &Problem, terms: &[Problem], blocks: usize) -> bool {
    let (shape, n) = (&stacked.shape, stacked.rows as u128);
    let others = terms.len() as u128 - 1;
    // One call more reads X, and adds to dX.
    let passes = if stacked.pass == (Pass::Backward { dx: true }) { 3 } else { 1 };
    let saved = others * passes * n * (stacked.dtype.size() * shape.d_in()) as u128;
    // On tensor cores a joined call has three launches and one for each term, single calls two for each; backward
    // adds as many to both. The time of the copies counts as one launch more.
    let launch = EARLY_BYTES / 5 * blocks as u128 / BLOCKS as u128;
    let launches = 4u128.saturating_sub(terms.len() as u128);
    saved > launches * launch + 8 * n * shape.t_row() as u128
}

/// Returns the elements of scratch that suffice for every joined or single call of the terms over at most `rows` rows.
///
/// # Errors
/// Fails if a size of a term exceeds the kernels' integers.
pub fn group_workspace_len(shapes: &[KronShape], pass: Pass, rows: usize) -> Result<usize> {
    let alone = shapes.iter().map(|&shape| workspace_len(shape, pass, rows)).collect::<Result<Vec<_>>>()?;
    let single = alone.into_iter().max().unwrap_or(0);
    if pass == Pass::Merge {
        return Ok(single);
    }
    let rank = shapes.iter().map(KronShape::width).fold(0, usize::saturating_add);
    let over_dy = |&shape: &KronShape| if pass == Pass::Forward { Ok(0) } else { over_dy_len(shape, rows) };
    let over_dy = shapes.iter().map(over_dy).collect::<Result<Vec<_>>>()?;
    let of = |dtype| {
        let problem =
            |&shape: &KronShape| Problem { shape, dtype, pass, rows, accumulate: true, aligned: true };
        let terms: Vec<Problem> = shapes.iter().map(problem).collect();
        let shape = stacked(terms.first()?, &terms, rank)?;
        let over_x = over_x_len(shape, pass, rows).ok()?;
        let both = [shape.c_len(), rows.saturating_mul(shape.t_row()), over_x];
        let of_terms = over_dy.iter().fold(0, |a: usize, &b| a.saturating_add(b));
        Some(both.into_iter().fold(of_terms, |sum, len| sum.saturating_add(len).saturating_add(RESERVED)))
    };
    let joined = [Dtype::F32, Dtype::Bf16].into_iter().filter_map(of).max();
    Ok(joined.unwrap_or(0).max(single))
}

impl Planner<'_> {
    /// Adds a kernel over float32 of each of `terms` terms.
    fn group_step(&mut self, pass: &str, grid: &[usize], terms: usize) -> Result<()> {
        self.step(pass, Tile::None, grid, group::THREADS, 0, Cols { tiles: terms, width: 0 })
    }
}
