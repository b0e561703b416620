//! dU = s·dY·B, dB += s·Σ dYᵀ·U, dT = Aᵀ·dU, dA += Σ dU·Tᵀ, dC += Σ dTᵀ·X, dX (+)= dT·C.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Cpu;
use super::forward::{blocks_first, mix};
use super::masked::Mask;
use super::plan::{Arena, Cut, MASKED_COLUMNS, aligned, b_factor, c_factor, outer_len, packed_len};
use crate::backend::{Accum, Backward};
use crate::simd::{Grid, GridMut, Isa, Kernels, Lanes, Products, Scalars, Side};
use crate::theta::{Parts, split, split_mut};
use crate::{Element, KronOp, KronShape, Outer, Result};

/// Packed factors, and for each partition a gradient and a scratch.
pub(super) fn workspace_len(isa: Isa, op: &KronOp, rows: usize) -> usize {
    let cut = Cut::backward(&op.shape, rows);
    let lens = GradLens::new(isa, &op.shape);
    packed_len(isa, &op.shape) + cut.parts * (lens.total() + scratch_len(op, &cut)) + Arena::SLACK
}

fn scratch_len(op: &KronOp, cut: &Cut) -> usize {
    let s = &op.shape;
    let t = aligned(cut.block * s.a_in() * s.width());
    let u = aligned(cut.block * s.a_out() * s.width());
    // T, dT and a copy in pairs; U, dU and a copy in pairs, or one row of dU.
    3 * t + if s.b_len() > 0 { 3 * u } else { aligned(s.d_out()) } + Mask::scratch_len(op, cut.block)
}

/// Lengths of the pieces of a partition's gradient.
#[derive(Clone, Copy)]
struct GradLens {
    a: usize,
    b: usize,
    c: usize,
}

impl GradLens {
    fn new(isa: Isa, s: &KronShape) -> Self {
        Self {
            a: aligned(s.a_len()),
            b: if s.b_len() > 0 { outer_len(isa, s.width(), s.b_out()) } else { 0 },
            c: outer_len(isa, s.width(), s.c_in()),
        }
    }
    const fn total(&self) -> usize {
        self.a + self.b + self.c
    }
}

pub(super) fn run<E: Element>(isa: Isa, op: &KronOp, call: Backward<'_, Cpu, E>) -> Result<()> {
    let Backward { theta, x, t, dy, dx, grad, workspace, dropout } = call;
    let rows = x.nrows();
    if rows == 0 {
        return Ok(());
    }
    let s = &op.shape;
    let cut = Cut::backward(s, rows);
    let kernels = Kernels::new(isa, E::DTYPE, Products::Native)?;
    let mask = Mask::new(op, dropout);
    // A masked dX is summed in float32 first, so that it is rounded once.
    let up = if mask.is_some() { kernels.float32() } else { kernels };
    let keep = mask.map_or(1.0, |m| m.keep_scale());
    let theta = split(s, theta);
    let mut arena = Arena::new(workspace);
    let b = b_factor(s, theta.b).map(|b| {
        let room = arena.take(kernels.packed_len(Side::Down, b.ranks, b.width));
        kernels.pack(b, Side::Down, room)
    });
    let c = dx.is_some().then(|| {
        let room = arena.take(up.packed_len(Side::Up, s.width(), s.c_in()));
        up.pack(c_factor(s, theta.c, keep), Side::Up, room)
    });
    let lens = GradLens::new(isa, s);
    let job = Job { op: *op, kernels, up, theta, b, c, mask, lens, block: cut.block };
    let grads = arena.take(cut.parts * lens.total());
    let scratch = arena.take(cut.parts * scratch_len(op, &cut));
    let t = &t[..op.t_len(rows)];
    match dx {
        Some((mut dx, accum)) => {
            let dx = dx.axis_chunks_iter_mut(Axis(0), cut.part).into_par_iter();
            job.parts(&cut, x, t, dy, dx.map(|dx| Some((dx, accum))), grads, scratch);
        }
        None => {
            let none = (0..cut.parts).into_par_iter().map(|_| None);
            job.parts(&cut, x, t, dy, none, grads, scratch);
        }
    }
    let sum = reduce(grads, lens.total());
    let grad = split_mut(s, grad);
    grad.a.iter_mut().zip(&*sum).for_each(|(g, sum)| *g += sum);
    if let Some(b) = b_factor(s, theta.b) {
        kernels.unpack_add(b, &sum[lens.a..lens.a + lens.b], grad.b);
    }
    kernels.unpack_add(c_factor(s, theta.c, keep), &sum[lens.a + lens.b..], grad.c);
    Ok(())
}

/// Adds the partitions' gradients, first to last, into the first.
fn reduce(grads: &mut [f32], len: usize) -> &mut [f32] {
    const PIECE: usize = 4096;
    let (sum, rest) = grads.split_at_mut(len);
    let add = |(i, sum): (usize, &mut [f32])| {
        for part in rest.chunks_exact(len) {
            let part = &part[i * PIECE..][..sum.len()];
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
    };
    if rest.len() > 64 * PIECE {
        sum.par_chunks_mut(PIECE).enumerate().for_each(add);
    } else {
        sum.chunks_mut(PIECE).enumerate().for_each(add);
    }
    sum
}

/// dX and what happens to its old contents.
type Dx<'a, E> = Option<(ArrayViewMut2<'a, E>, Accum)>;

/// What all partitions share.
struct Job<'a> {
    op: KronOp,
    kernels: Kernels,
    up: Kernels,
    theta: Parts<'a>,
    b: Option<Lanes<'a>>,
    c: Option<Lanes<'a>>,
    mask: Option<Mask>,
    lens: GradLens,
    block: usize,
}

/// A partition's gradient: A row-major, B and C as `outer` sums them.
struct PartGrad<'a> {
    a: &'a mut [f32],
    b: &'a mut [f32],
    c: &'a mut [f32],
}

impl Job<'_> {
    #[allow(clippy::too_many_arguments)] // the pieces of one call, cut in one place
    fn parts<'a, E: Element>(
        &self,
        cut: &Cut,
        x: ArrayView2<E>,
        t: &[f32],
        dy: ArrayView2<E>,
        dx: impl IndexedParallelIterator<Item = Dx<'a, E>>,
        grads: &mut [f32],
        scratch: &mut [f32],
    ) {
        let one = |(i, (((((x, t), dy), dx), grad), scratch))| {
            self.part(i * cut.part, x, t, dy, dx, grad, scratch);
        };
        (x.axis_chunks_iter(Axis(0), cut.part).into_par_iter())
            .zip(t.par_chunks(self.op.t_len(cut.part)))
            .zip(dy.axis_chunks_iter(Axis(0), cut.part))
            .zip(dx)
            .zip(grads.par_chunks_mut(self.lens.total()))
            .zip(scratch.par_chunks_mut(scratch_len(&self.op, cut)))
            .enumerate()
            .for_each(one);
    }

    /// Rows first…, block by block, into one gradient.
    #[allow(clippy::too_many_arguments)] // the same pieces
    fn part<E: Element>(
        &self,
        first: usize,
        x: ArrayView2<E>,
        t: &[f32],
        dy: ArrayView2<E>,
        mut dx: Dx<'_, E>,
        grad: &mut [f32],
        scratch: &mut [f32],
    ) {
        grad.fill(0.0);
        let (a, rest) = grad.split_at_mut(self.lens.a);
        let (b, c) = rest.split_at_mut(self.lens.b);
        let mut grad = PartGrad { a, b, c };
        let rows = x.nrows();
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            let t = &t[self.op.t_len(r)..self.op.t_len(r + n)];
            let mut arena = Arena::new(&mut *scratch);
            let dt = arena.take(self.op.t_len(n));
            let room = arena.take(self.op.t_len(n));
            let dy = dy.slice(s![r..r + n, ..]);
            match self.b {
                Some(b) => self.output_low_rank(b, t, dy, dt, &mut grad, &mut arena),
                None => self.output_full(t, dy, dt, &mut grad, &mut arena),
            }
            let x = x.slice(s![r..r + n, ..]);
            let dx = dx.as_mut().map(|(dx, accum)| (dx.slice_mut(s![r..r + n, ..]), *accum));
            self.input(first + r, x, dx, dt, room, grad.c, &mut arena);
        }
    }

    /// dY side: dU, dB, dA and dT (\[a_in, n, r\]).
    fn output_low_rank<E: Element>(
        &self,
        b: Lanes,
        t: &[f32],
        dy: ArrayView2<E>,
        dt: &mut [f32],
        grad: &mut PartGrad,
        arena: &mut Arena,
    ) {
        let (s, n, scale) = (&self.op.shape, dy.nrows(), self.op.scale.get());
        let (a_out, a_in, r) = (s.a_out(), s.a_in(), s.width());
        let (k, f32s) = (self.kernels, self.kernels.float32());
        let tt = arena.take(self.op.t_len(n));
        let [u, du, room] = [(); 3].map(|()| arena.take(n * a_out * r));
        let dy = Grid::of_view(dy, a_out);
        k.down(dy, b, &mut GridMut::new(du, n, a_out, (r, n * r), r), false);
        du.iter_mut().for_each(|du| *du *= scale);
        blocks_first(t, (n, a_in, r), tt);
        mix(k, s, self.theta.a, tt, n, u);
        k.outer(k.scalars_for_outer(u, (n, a_out, r), scale, room), dy, grad.b);
        if s.outer() == Outer::One {
            return dt.copy_from_slice(du);
        }
        let len = n * r;
        let a_t = Scalars::new(self.theta.a, (1, a_in), (1, 1, a_in), a_out);
        let mut dt = GridMut::new(dt, 1, a_in, (a_in * len, len), len);
        f32s.up(a_t, Lanes::rows(du, len, f32s.lanes()), &mut dt, Accum::Replace);
        let du = Grid::new(du, 1, a_out, (a_out * len, len), len);
        let mut da = GridMut::new(grad.a, 1, a_out, (a_out * a_in, a_in), a_in);
        f32s.down(du, Lanes::rows(tt, len, f32s.lanes()), &mut da, true);
    }

    /// The same with a full inner factor: dU is s·dY itself, taken a row at a time.
    fn output_full<E: Element>(
        &self,
        t: &[f32],
        dy: ArrayView2<E>,
        dt: &mut [f32],
        grad: &mut PartGrad,
        arena: &mut Arena,
    ) {
        let (s, n, scale) = (&self.op.shape, dy.nrows(), self.op.scale.get());
        let (a_out, a_in, w) = (s.a_out(), s.a_in(), s.width());
        let k = self.kernels.float32();
        let du = arena.take(a_out * w);
        for (i, dy) in dy.rows().into_iter().enumerate() {
            du.iter_mut().zip(dy).for_each(|(du, dy)| *du = scale * dy.to_f32());
            let a_t = Scalars::new(self.theta.a, (1, a_in), (1, 1, a_in), a_out);
            let mut dt = GridMut::new(&mut dt[i * w..], 1, a_in, (a_in * n * w, n * w), w);
            k.up(a_t, Lanes::rows(du, w, k.lanes()), &mut dt, Accum::Replace);
            if s.outer() == Outer::One {
                continue;
            }
            let t = Lanes::rows(&t[self.op.t_len(i)..self.op.t_len(i + 1)], w, k.lanes());
            let mut da = GridMut::new(grad.a, 1, a_out, (a_out * a_in, a_in), a_in);
            k.down(Grid::new(du, 1, a_out, (a_out * w, w), w), t, &mut da, true);
        }
    }

    /// X side: dC and dX, from dT.
    #[allow(clippy::too_many_arguments)] // the pieces of one block
    fn input<E: Element>(
        &self,
        row: usize,
        x: ArrayView2<E>,
        dx: Dx<'_, E>,
        dt: &mut [f32],
        room: &mut [f32],
        dc: &mut [f32],
        arena: &mut Arena,
    ) {
        let (s, n) = (&self.op.shape, x.nrows());
        let (a, w, c_in) = (s.a_in(), s.width(), s.c_in());
        let Some(mask) = self.mask else {
            let rows = self.kernels.scalars_for_outer(dt, (n, a, w), 1.0, room);
            self.kernels.outer(rows, Grid::of_view(x, a), dc);
            if let (Some((dx, accum)), Some(c)) = (dx, self.c) {
                let ranks = self.up.scalars_for_up(dt, (n, a, w), 1.0, room);
                self.up.up(ranks, c, &mut GridMut::of_view(dx, a), accum);
            }
            return;
        };
        let scratch = arena.take(Mask::scratch_len(&self.op, n));
        let lanes = self.kernels.lanes();
        let rows = self.kernels.scalars_for_outer(dt, (n, a, w), 1.0, room);
        for k in (0..c_in).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, k, scratch);
            self.kernels.outer(rows, x, &mut dc[k / lanes * lanes * w..]);
        }
        if let (Some((mut dx, accum)), Some(c)) = (dx, self.c) {
            let ranks = self.up.scalars_for_up(dt, (n, a, w), 1.0, room);
            for k in (0..c_in).step_by(MASKED_COLUMNS) {
                let cols = MASKED_COLUMNS.min(c_in - k);
                let d = &mut scratch[..n * a * cols];
                let mut grid = GridMut::new(d, n, a, (a * cols, cols), cols);
                self.up.up(ranks, c.after(k / lanes), &mut grid, Accum::Replace);
                mask.add(row, d, k, cols, &mut dx, accum);
            }
        }
    }
}
