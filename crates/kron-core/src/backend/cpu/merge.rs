//! W += s·A ⊗ (B·C), row by row: row (i, p) of the Kronecker product is
//! Σ_ρ (s·A_ij·B_pρ)·C_ρ in block j, the product that makes dX from dT.

use ndarray::{ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Cpu;
use super::plan::{Arena, Cut, aligned, c_factor, groups_len, packed_len};
use crate::backend::{Accum, Merge};
use crate::simd::{GridMut, Isa, Kernels, Lanes, Products, Side};
use crate::theta::{Parts, split};
use crate::{Element, Inner, KronOp, Result};

/// C packed, and the coefficients of a block of rows for each partition.
pub(super) fn workspace_len(isa: Isa, op: &KronOp, rows: usize) -> usize {
    let cut = Cut::forward(&op.shape, rows);
    packed_len(isa, &op.shape) + cut.parts * scratch_len(isa, op, &cut) + Arena::SLACK
}

fn scratch_len(isa: Isa, op: &KronOp, cut: &Cut) -> usize {
    let (rows, ranks) = (cut.block * op.shape.a_in(), op.shape.rank().unwrap_or(1));
    aligned(rows * ranks) + groups_len(isa, rows, ranks)
}

pub(super) fn run<E: Element>(isa: Isa, op: &KronOp, call: Merge<'_, Cpu, E>) -> Result<()> {
    let Merge { theta, mut w, first_row, accum, workspace } = call;
    let rows = w.nrows();
    if rows == 0 {
        return Ok(());
    }
    let cut = Cut::forward(&op.shape, rows);
    let kernels = Kernels::new(isa, E::DTYPE, Products::Float32)?;
    let theta = split(&op.shape, theta);
    let mut arena = Arena::new(workspace);
    let c = op.shape.rank().map(|r| {
        let room = arena.take(kernels.packed_len(Side::Up, r, op.shape.c_in()));
        kernels.pack(c_factor(&op.shape, theta.c, 1.0), Side::Up, room)
    });
    let job = Job { op: *op, kernels, theta, c, accum, block: cut.block };
    let scratch_len = scratch_len(isa, op, &cut);
    let scratch = arena.take(cut.parts * scratch_len);
    if cut.parts == 1 {
        job.part(first_row, w, scratch);
        return Ok(());
    }
    (w.axis_chunks_iter_mut(Axis(0), cut.part).into_par_iter())
        .zip(scratch.par_chunks_mut(scratch_len))
        .enumerate()
        .for_each(|(i, (w, scratch))| job.part(first_row + i * cut.part, w, scratch));
    Ok(())
}

/// What all partitions share.
struct Job<'a> {
    op: KronOp,
    kernels: Kernels,
    theta: Parts<'a>,
    c: Option<Lanes<'a>>,
    accum: Accum,
    block: usize,
}

impl Job<'_> {
    fn part<E: Element>(&self, first: usize, mut w: ArrayViewMut2<E>, scratch: &mut [f32]) {
        let (s, rows) = (&self.op.shape, w.nrows());
        let ranks = s.rank().unwrap_or(1);
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            let (u, room) = scratch.split_at_mut(aligned(n * s.a_in() * ranks));
            let u = &mut u[..n * s.a_in() * ranks];
            for (k, u) in u.chunks_exact_mut(s.a_in() * ranks).enumerate() {
                self.coefficients(first + r + k, u);
            }
            let mut w = GridMut::of_view(w.slice_mut(s![r..r + n, ..]), s.a_in());
            match self.c {
                Some(c) => {
                    // \[n, a_in, r\] is already in flat order: one block of n·a_in rows.
                    let u = self.kernels.groups(u, (n * s.a_in(), 1, ranks), 1.0, room);
                    self.kernels.up(u, c, &mut w, self.accum);
                }
                None => {
                    for (k, u) in u.chunks_exact(s.a_in()).enumerate() {
                        let p = (first + r + k) % s.b_out();
                        let m = &self.theta.c[p * s.c_in()..][..s.c_in()];
                        let m = self.kernels.unpacked(Side::Up, m, s.c_in());
                        let u = self.kernels.groups(u, (s.a_in(), 1, 1), 1.0, room);
                        self.kernels.up(u, m, &mut w.tokens(k, 1), self.accum);
                    }
                }
            }
        }
    }

    /// s·A_ij·B_pρ of weight row (i, p), as \[a_in, r\]; s·A_ij with a full inner factor.
    fn coefficients(&self, row: usize, u: &mut [f32]) {
        let s = &self.op.shape;
        let (i, p) = (row / s.b_out(), row % s.b_out());
        let a = &self.theta.a[i * s.a_in()..][..s.a_in()];
        match s.inner() {
            Inner::LowRank(r) => {
                let b = &self.theta.b[p * r..][..r];
                for (u, a) in u.chunks_exact_mut(r).zip(a) {
                    u.iter_mut().zip(b).for_each(|(u, b)| *u = self.op.scale.get() * a * b);
                }
            }
            Inner::Full => u.iter_mut().zip(a).for_each(|(u, a)| *u = self.op.scale.get() * a),
        }
    }
}
