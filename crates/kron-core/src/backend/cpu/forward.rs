//! T = X·Cᵀ, U = A·T, Y (+)= s·U·Bᵀ.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Cpu;
use super::masked::Mask;
use super::plan::{Arena, Cut, MASKED_COLUMNS, aligned, b_factor, c_factor, groups_len, packed_len};
use crate::backend::{Accum, Forward};
use crate::simd::{Grid, GridMut, Groups, Isa, Kernels, Lanes, Products, Side};
use crate::theta::split;
use crate::{Element, KronOp, Outer, Result};

/// Packed factors, A in groups, and a scratch for each partition.
pub(super) fn workspace_len(isa: Isa, op: &KronOp, rows: usize) -> usize {
    let cut = Cut::forward(&op.shape, rows);
    packed_len(isa, &op.shape)
        + groups_len(isa, op.shape.a_out(), op.shape.a_in())
        + cut.parts * scratch_len(isa, op, &cut)
        + Arena::SLACK
}

fn scratch_len(isa: Isa, op: &KronOp, cut: &Cut) -> usize {
    let (s, n) = (&op.shape, cut.block);
    let mask = Mask::scratch_len(op, n);
    match s.rank() {
        // T and U by blocks, and U in groups.
        Some(r) => {
            aligned(op.t_len(n)) + aligned(n * s.a_out() * r) + groups_len(isa, n * s.a_out(), r) + mask
        }
        // Never empty: each partition takes a piece of it.
        None => mask.max(aligned(1)),
    }
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
        (k, k.unpacked(Side::Down, parts.c, op.shape.c_in()))
    } else {
        let keep = mask.map_or(1.0, |m| m.keep_scale());
        let room = arena.take(kernels.packed_len(Side::Down, op.shape.width(), op.shape.c_in()));
        (kernels, kernels.pack(c_factor(&op.shape, parts.c, keep), Side::Down, room))
    };
    let b = b_factor(&op.shape, parts.b).map(|b| {
        let room = arena.take(kernels.packed_len(Side::Up, b.ranks, b.width));
        kernels.pack(b, Side::Up, room)
    });
    // With a full inner factor U meets Y at once, so A brings the scale.
    let a_scale = if b.is_none() { op.scale.get() } else { 1.0 };
    let a = (b.is_none() || op.shape.outer() == Outer::Trained).then(|| {
        let room = arena.take(kernels.float32().groups_len(op.shape.a_out(), op.shape.a_in()));
        kernels.float32().groups(parts.a, (1, op.shape.a_out(), op.shape.a_in()), a_scale, room)
    });
    let job = Job { op: *op, kernels, down, a, b, c, mask, accum, block: cut.block };
    let t = &mut t[..op.t_len(rows)];
    let scratch_len = scratch_len(isa, op, &cut);
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

/// What all partitions share.
struct Job<'a> {
    op: KronOp,
    kernels: Kernels,
    down: Kernels,
    /// A in groups, times s with a full inner factor; `None` for LoRA's \[1\].
    a: Option<Groups<'a>>,
    b: Option<Lanes<'a>>,
    c: Lanes<'a>,
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
        for k in (0..s.c_in()).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, k, scratch);
            self.down.down(x, self.c.after(self.down.panels(Side::Down, k)), &mut t, k > 0);
        }
    }

    /// U = A·T, Y (+)= s·U·Bᵀ.
    fn up<E: Element>(&self, n: usize, t: &[f32], y: &mut GridMut<E>, arena: &mut Arena) {
        let (s, w, k) = (&self.op.shape, self.op.shape.width(), self.kernels);
        match (self.b, self.a) {
            (Some(b), a) => {
                let tt = arena.take(self.op.t_len(n));
                let u = arena.take(n * s.a_out() * w);
                let room = arena.take(k.groups_len(n * s.a_out(), w));
                blocks_first(t, (n, s.a_in(), w), tt);
                mix(k, a, tt, u);
                k.up(k.groups(u, (n, s.a_out(), w), self.op.scale.get(), room), b, y, self.accum);
            }
            (None, Some(a)) => {
                for i in 0..n {
                    let t = &t[self.op.t_len(i)..self.op.t_len(i + 1)];
                    let t = k.float32().unpacked(Side::Up, t, w);
                    k.float32().up(a, t, &mut y.tokens(i, 1), self.accum);
                }
            }
            (None, None) => unreachable!("a full inner factor always has A in groups"),
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

/// U\[i\] = Σ_j A_ij·T\[j\] over \[block, n, r\]; without an A, U = T.
pub(super) fn mix(kernels: Kernels, a: Option<Groups>, t: &[f32], u: &mut [f32]) {
    let Some(a) = a else {
        return u.copy_from_slice(t);
    };
    let (k, len) = (kernels.float32(), t.len() / a.ranks());
    let rows = u.len() / len;
    let mut u = GridMut::new(u, 1, rows, (rows * len, len), len);
    k.up(a, k.unpacked(Side::Up, t, len), &mut u, Accum::Replace);
}
