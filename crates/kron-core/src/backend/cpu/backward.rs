//! dU = s·dY·B, dB += s·Σ dYᵀ·U, dT = Aᵀ·dU, dA += Σ dU·Tᵀ, dC += Σ dTᵀ·X, dX (+)= dT·C.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Cpu;
use super::forward::{blocks_first, mix};
use super::masked::Mask;
use super::plan::{
    Arena, Cut, MASKED_COLUMNS, aligned, b_factor, c_factor, groups_len, outer_len, packed_len,
};
use crate::backend::{Accum, Backward};
use crate::simd::{Grid, GridMut, Groups, Isa, Kernels, Lanes, Products, Side};
use crate::theta::{split, split_mut};
use crate::{Element, Inner, KronOp, KronShape, Outer, Result};

/// Packed factors, A and Aᵀ in groups, and for each partition a gradient and a scratch.
pub(super) fn workspace_len(isa: Isa, op: &KronOp, rows: usize) -> usize {
    let s = &op.shape;
    let cut = Cut::backward(s, rows);
    let a = groups_len(isa, s.a_out(), s.a_in()) + groups_len(isa, s.a_in(), s.a_out());
    let lens = GradLens::new(isa, s);
    packed_len(isa, s)
        + a
        + aligned(s.a_len())
        + cut.parts * (lens.total() + scratch_len(isa, op, &cut))
        + Arena::SLACK
}

fn scratch_len(isa: Isa, op: &KronOp, cut: &Cut) -> usize {
    let (s, n, w) = (&op.shape, cut.block, op.shape.width());
    let t = aligned(op.t_len(n));
    let output = match s.inner() {
        // T, U and dU by blocks, and U by rows.
        Inner::LowRank(_) => t + 3 * aligned(n * s.a_out() * w),
        // One row of dU.
        Inner::Full => aligned(s.d_out()),
    };
    // dT by blocks and in groups (or by rows).
    t + groups_len(isa, n * s.a_in(), w) + output + Mask::scratch_len(op, n)
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
    let (mut a, mut a_t) = (None, None);
    if s.outer() == Outer::Trained {
        let (k, dims) = (kernels.float32(), (s.a_out(), s.a_in()));
        let room = arena.take(k.groups_len(dims.0, dims.1));
        a = Some(k.groups(theta.a, (1, dims.0, dims.1), 1.0, room));
        let (turned, room) = (arena.take(s.a_len()), arena.take(k.groups_len(dims.1, dims.0)));
        turn(theta.a, dims, turned);
        a_t = Some(k.groups(turned, (1, dims.1, dims.0), 1.0, room));
    }
    let lens = GradLens::new(isa, s);
    let job = Job { op: *op, kernels, up, a, a_t, b, c, mask, lens, block: cut.block };
    let scratch_len = scratch_len(isa, op, &cut);
    let grads = arena.take(cut.parts * lens.total());
    let scratch = arena.take(cut.parts * scratch_len);
    let t = &t[..op.t_len(rows)];
    match dx {
        Some((mut dx, accum)) => {
            let dx = dx.axis_chunks_iter_mut(Axis(0), cut.part).into_par_iter();
            let dx = dx.map(|dx| Some((dx, accum)));
            job.parts(&cut, x, t, dy, dx, grads, (scratch, scratch_len));
        }
        None => {
            let none = (0..cut.parts).into_par_iter().map(|_| None);
            job.parts(&cut, x, t, dy, none, grads, (scratch, scratch_len));
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

/// Aᵀ, row-major, from an A of `rows` × `cols`.
fn turn(a: &[f32], (rows, cols): (usize, usize), out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = a[i % rows * cols + i / rows];
    }
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
    /// A and Aᵀ in groups; `None` for LoRA's \[1\].
    a: Option<Groups<'a>>,
    a_t: Option<Groups<'a>>,
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
        (scratch, scratch_len): (&mut [f32], usize),
    ) {
        let one = |(i, (((((x, t), dy), dx), grad), scratch))| {
            self.part(i * cut.part, x, t, dy, dx, grad, scratch);
        };
        (x.axis_chunks_iter(Axis(0), cut.part).into_par_iter())
            .zip(t.par_chunks(self.op.t_len(cut.part)))
            .zip(dy.axis_chunks_iter(Axis(0), cut.part))
            .zip(dx)
            .zip(grads.par_chunks_mut(self.lens.total()))
            .zip(scratch.par_chunks_mut(scratch_len))
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
            let room =
                arena.take(self.up.float32().groups_len(n * self.op.shape.a_in(), self.op.shape.width()));
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
        mix(k, self.a, tt, u);
        k.outer(k.rows(u, (n, a_out, r), scale, room), dy, grad.b);
        mix(k, self.a_t, du, dt);
        if s.outer() == Outer::Trained {
            let len = n * r;
            let du = Grid::new(du, 1, a_out, (a_out * len, len), len);
            let mut da = GridMut::new(grad.a, 1, a_out, (a_out * a_in, a_in), a_in);
            f32s.down(du, f32s.unpacked(Side::Down, tt, len), &mut da, true);
        }
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
            let Some(a_t) = self.a_t else {
                dt[i * w..][..w].copy_from_slice(du);
                continue;
            };
            let mut dt = GridMut::new(&mut dt[i * w..], 1, a_in, (a_in * n * w, n * w), w);
            k.up(a_t, k.unpacked(Side::Up, du, w), &mut dt, Accum::Replace);
            let t = k.unpacked(Side::Down, &t[self.op.t_len(i)..self.op.t_len(i + 1)], w);
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
        dt: &[f32],
        room: &mut [f32],
        dc: &mut [f32],
        arena: &mut Arena,
    ) {
        let (s, n) = (&self.op.shape, x.nrows());
        let (a, w, c_in) = (s.a_in(), s.width(), s.c_in());
        let Some(mask) = self.mask else {
            let rows = self.kernels.rows(dt, (n, a, w), 1.0, room);
            self.kernels.outer(rows, Grid::of_view(x, a), dc);
            if let (Some((dx, accum)), Some(c)) = (dx, self.c) {
                let groups = self.up.groups(dt, (n, a, w), 1.0, room);
                self.up.up(groups, c, &mut GridMut::of_view(dx, a), accum);
            }
            return;
        };
        let scratch = arena.take(Mask::scratch_len(&self.op, n));
        let lanes = self.kernels.lanes();
        let rows = self.kernels.rows(dt, (n, a, w), 1.0, room);
        for k in (0..c_in).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, k, scratch);
            self.kernels.outer(rows, x, &mut dc[k / lanes * lanes * w..]);
        }
        if let (Some((mut dx, accum)), Some(c)) = (dx, self.c) {
            let groups = self.up.groups(dt, (n, a, w), 1.0, room);
            for k in (0..c_in).step_by(MASKED_COLUMNS) {
                let cols = MASKED_COLUMNS.min(c_in - k);
                let d = &mut scratch[..n * a * cols];
                let mut grid = GridMut::new(d, n, a, (a * cols, cols), cols);
                self.up.up(groups, c.after(self.up.panels(Side::Up, k)), &mut grid, Accum::Replace);
                mask.add(row, d, k, cols, &mut dx, accum);
            }
        }
    }
}
