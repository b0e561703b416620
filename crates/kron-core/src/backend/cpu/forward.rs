//! T = X·Cᵀ, U = A·T, Y (+)= s·U·Bᵀ.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::masked::Mask;
use super::plan::{Arena, Cut, MASKED_COLUMNS, aligned, b_factor, c_factor, packed_len};
use super::Cpu;
use crate::backend::{Accum, Forward};
use crate::simd::{Grid, GridMut, Isa, Kernels, Lanes, Products, Scalars, Side};
use crate::theta::{Parts, split};
use crate::{Element, KronOp, KronShape, Outer, Result};

/// Packed factors, a scaled A, and a scratch for each partition.
pub(super) fn workspace_len(isa: Isa, op: &KronOp, rows: usize) -> usize {
    let cut = Cut::forward(&op.shape, rows);
    packed_len(isa, &op.shape) + aligned(op.shape.a_out() * op.shape.a_in())
        + cut.parts * scratch_len(op, &cut)
        + Arena::SLACK
}

fn scratch_len(op: &KronOp, cut: &Cut) -> usize {
    let s = &op.shape;
    let t = aligned(cut.block * s.a_in() * s.width());
    let u = if s.b_len() > 0 { aligned(cut.block * s.a_out() * s.width()) } else { 0 };
    t + 2 * u + Mask::scratch_len(op, cut.block)
}

pub(super) fn run<E: Element>(isa: Isa, op: &KronOp, call: Forward<'_, Cpu, E>) -> Result<()> {
    let Forward { theta, x, mut y, accum, t, workspace, dropout } = call;
    let (rows, cut) = (x.nrows(), Cut::forward(&op.shape, x.nrows()));
    if rows == 0 {
        return Ok(());
    }
    let kernels = Kernels::new(isa, E::DTYPE, Products::Native)?;
    let mask = Mask::new(op, dropout);
    let parts = split(&op.shape, theta);
    let mut arena = Arena::new(workspace);
    // One row reads C once: there is nothing to gain from packing it first.
    let direct = rows * op.shape.a_in() <= 3 && mask.is_none();
    let (down, c) = if direct {
        let k = kernels.float32();
        (k, Lanes::rows(parts.c, op.shape.c_in(), k.lanes()))
    } else {
        let keep = mask.map_or(1.0, |m| m.keep_scale());
        let room = arena.take(kernels.packed_len(Side::Down, op.shape.width(), op.shape.c_in()));
        (kernels, kernels.pack(c_factor(&op.shape, parts.c, keep), Side::Down, room))
    };
    let output = match b_factor(&op.shape, parts.b) {
        Some(b) => {
            let room = arena.take(kernels.packed_len(Side::Up, b.ranks, b.width));
            Output::LowRank(kernels.pack(b, Side::Up, room))
        }
        None => {
            // U is what meets Y here, so A brings the scale.
            let a = arena.take(parts.a.len());
            a.iter_mut().zip(parts.a).for_each(|(o, a)| *o = op.scale.get() * a);
            Output::Full(a)
        }
    };
    let job = Job { op: *op, kernels, down, theta: parts, c, output, mask, accum, block: cut.block };
    let t = &mut t[..op.t_len(rows)];
    let scratch_len = scratch_len(op, &cut);
    let scratch = arena.take(cut.parts * scratch_len);
    if cut.parts == 1 {
        job.part(0, x, y, t, scratch);
        return Ok(());
    }
    (x.axis_chunks_iter(Axis(0), cut.part).into_par_iter())
        .zip(y.axis_chunks_iter_mut(Axis(0), cut.part))
        .zip(t.par_chunks_mut(op.t_len(cut.part)))
        .zip(scratch.par_chunks_mut(scratch_len))
        .enumerate()
        .for_each(|(i, (((x, y), t), scratch))| job.part(i * cut.part, x, y, t, scratch));
    Ok(())
}

/// What turns U into Y.
#[derive(Clone, Copy)]
enum Output<'a> {
    /// B, packed.
    LowRank(Lanes<'a>),
    /// s·A: with a full inner factor U is already as wide as Y.
    Full(&'a [f32]),
}

/// What all partitions share.
struct Job<'a> {
    op: KronOp,
    kernels: Kernels,
    down: Kernels,
    theta: Parts<'a>,
    c: Lanes<'a>,
    output: Output<'a>,
    mask: Option<Mask>,
    accum: Accum,
    block: usize,
}

impl Job<'_> {
    /// Rows first…, block by block.
    fn part<E: Element>(
        &self,
        first: usize,
        x: ArrayView2<E>,
        mut y: ArrayViewMut2<E>,
        t: &mut [f32],
        scratch: &mut [f32],
    ) {
        let rows = x.nrows();
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            let t = &mut t[self.op.t_len(r)..self.op.t_len(r + n)];
            let mut arena = Arena::new(&mut *scratch);
            self.down(first + r, x.slice(s![r..r + n, ..]), t, &mut arena);
            let mut y = GridMut::of_view(y.slice_mut(s![r..r + n, ..]), self.op.shape.a_out());
            self.up(n, t, &mut y, &mut arena);
        }
    }

    /// T = X·Cᵀ, with the rows' own mask.
    fn down<E: Element>(&self, row: usize, x: ArrayView2<E>, t: &mut [f32], arena: &mut Arena) {
        let (s, n) = (&self.op.shape, x.nrows());
        let (a, w) = (s.a_in(), s.width());
        let mut t = GridMut::new(t, n, a, (a * w, w), w);
        let Some(mask) = self.mask else {
            return self.down.down(Grid::of_view(x, a), self.c, &mut t, false);
        };
        let scratch = arena.take(Mask::scratch_len(&self.op, n));
        let step = self.down.lanes() * self.down.pair();
        for k in (0..s.c_in()).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, k, scratch);
            self.down.down(x, self.c.after(k / step), &mut t, k > 0);
        }
    }

    /// U = A·T, Y (+)= s·U·Bᵀ.
    fn up<E: Element>(&self, n: usize, t: &[f32], y: &mut GridMut<E>, arena: &mut Arena) {
        let (s, w) = (&self.op.shape, self.op.shape.width());
        let (a_out, a_in) = (s.a_out(), s.a_in());
        match self.output {
            Output::LowRank(b) => {
                let tt = arena.take(self.op.t_len(n));
                let u = arena.take(n * a_out * w);
                let room = arena.take(n * a_out * w);
                blocks_first(t, (n, a_in, w), tt);
                mix(self.kernels, s, self.theta.a, tt, n, u);
                let u = self.kernels.scalars_for_up(u, (n, a_out, w), self.op.scale.get(), room);
                self.kernels.up(u, b, y, self.accum);
            }
            Output::Full(a) => {
                let k = self.kernels.float32();
                for i in 0..n {
                    let a = Scalars::new(a, (1, a_out), (a.len(), a_in, 1), a_in);
                    let t = Lanes::rows(&t[self.op.t_len(i)..self.op.t_len(i + 1)], w, k.lanes());
                    k.up(a, t, &mut y.tokens(i, 1), self.accum);
                }
            }
        }
    }
}

/// \[n, a, r\] → \[a, n, r\]: the numbers of one block of all tokens side by side,
/// so that A meets full registers whatever the rank.
pub(super) fn blocks_first(t: &[f32], (n, a, r): (usize, usize, usize), out: &mut [f32]) {
    for (j, out) in out.chunks_exact_mut(n * r).enumerate() {
        for (i, out) in out.chunks_exact_mut(r).enumerate() {
            out.copy_from_slice(&t[(i * a + j) * r..][..r]);
        }
    }
}

/// U\[i\] = Σ_j A_ij·T\[j\] over \[block, n, r\].
pub(super) fn mix(kernels: Kernels, s: &KronShape, a: &[f32], t: &[f32], n: usize, u: &mut [f32]) {
    if s.outer() == Outer::One {
        return u.copy_from_slice(t);
    }
    let (k, len) = (kernels.float32(), n * s.width());
    let a = Scalars::new(a, (1, s.a_out()), (a.len(), s.a_in(), 1), s.a_in());
    let mut u = GridMut::new(u, 1, s.a_out(), (s.a_out() * len, len), len);
    k.up(a, Lanes::rows(t, len, k.lanes()), &mut u, Accum::Replace);
}
