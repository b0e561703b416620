//! W += s·A ⊗ (B·C), row by row. Block j of row (i, p) of the Kronecker product is
//! Σ_ρ (s·A_ij·B_pρ)·C_ρ, the product that also computes dX from dT.

use ndarray::{ArrayViewMut2, Axis, s};

use super::check;
use super::device::Cpu;
use super::layout::{CallLayout, Layout};
use super::packed::{PackedLen, c_factor};
use super::partition::{Partitioned, RowPartition};
use crate::simd::{Isa, Kernels, Lanes, PackFor, Products, RowGridMut};
use crate::theta::{Parts, split};
use crate::{Accum, Element, Inner, KronOp, Merge, Result};

/// Packed C; for each partition, the coefficients of a block of rows, and the same packed.
pub(super) fn layout(isa: Isa, op: &KronOp, partition: RowPartition) -> CallLayout<1, 2> {
    let (s, packed) = (&op.shape, PackedLen::new(isa));
    let (n, ranks) = (partition.block * s.a_in(), s.rank().unwrap_or(1));
    // M is read as it is, row by row.
    let packed_c = s.rank().map_or(0, |_| packed.c(s, PackFor::Up));
    CallLayout::new(
        partition,
        [("packed C", packed_c)],
        [("coefficients", n * ranks), ("packed coefficients", packed.groups(n, ranks))],
    )
}

pub(super) fn run<E: Element>(cpu: Cpu, op: &KronOp, call: Merge<'_, Cpu, E>) -> Result<()> {
    let rows = call.w.nrows();
    let layout = layout(cpu.isa, op, RowPartition::new(Partitioned::Forward, &op.shape, rows));
    check::merge(op, &call, layout.workspace_len())?;
    if rows == 0 {
        return Ok(());
    }
    let Merge { theta, mut w, first_row, accum, workspace } = call;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Float32)?;
    let theta = split(&op.shape, theta);
    let ([packed_c], scratch) = layout.split(workspace);
    let c = (op.shape.rank().is_some())
        .then(|| kernels.pack(c_factor(&op.shape, theta.c, 1.0), PackFor::Up, packed_c));
    let partition = layout.partition;
    let job = Job { op: *op, kernels, theta, c, accum, block: partition.block, scratch: layout.scratch };
    let parts = w.axis_chunks_iter_mut(Axis(0), partition.part).zip(scratch.chunks_mut(layout.scratch_len()));
    cpu.team.each(parts, |i, (w, scratch)| job.part(first_row + i * partition.part, w, scratch));
    Ok(())
}

/// Operands that all partitions share.
struct Job<'a> {
    op: KronOp,
    kernels: Kernels,
    theta: Parts<'a>,
    c: Option<Lanes<'a>>,
    accum: Accum,
    block: usize,
    scratch: Layout<2>,
}

impl Job<'_> {
    /// Adds one partition, block by block; `first` is its first row of the weight.
    fn part<E: Element>(&self, first: usize, mut w: ArrayViewMut2<E>, scratch: &mut [f32]) {
        let (s, rows) = (&self.op.shape, w.nrows());
        let ranks = s.rank().unwrap_or(1);
        let [coefficients, packed] = self.scratch.split(scratch);
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            let u = &mut coefficients[..n * s.a_in() * ranks];
            for (k, u) in u.chunks_exact_mut(s.a_in() * ranks).enumerate() {
                self.coefficients(first + r + k, u);
            }
            let mut w = RowGridMut::of_view(w.slice_mut(s![r..r + n, ..]), s.a_in());
            match self.c {
                Some(c) => {
                    // \[n, a_in, r\] is in row order already: one block of n·a_in rows.
                    let u = self.kernels.groups(u, (n * s.a_in(), 1, ranks), 1.0, packed);
                    self.kernels.up(&[(u, c)], &mut w, self.accum);
                }
                None => {
                    for (k, u) in u.chunks_exact(s.a_in()).enumerate() {
                        let p = (first + r + k) % s.b_out();
                        let m = &self.theta.c[p * s.c_in()..][..s.c_in()];
                        let m = self.kernels.unpacked(PackFor::Up, m, s.c_in());
                        let u = self.kernels.groups(u, (s.a_in(), 1, 1), 1.0, packed);
                        self.kernels.up(&[(u, m)], &mut w.tokens(k, 1), self.accum);
                    }
                }
            }
        }
    }

    /// Writes s·A_ij·B_pρ of weight row (i, p), as \[a_in, r\]; with a full inner factor, s·A_ij.
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
