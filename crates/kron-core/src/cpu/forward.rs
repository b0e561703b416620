//! T = X·Cᵀ, U = A·T, Y (+)= s·U·Bᵀ.

use super::check;
use super::device::Cpu;
use super::layout::{CallLayout, Layout};
use super::masked::{MASKED_COLUMNS, Mask};
use super::mix::{blocks_first, mix};
use super::packed::{PackedLen, b_factor, c_factor};
use super::partition::{Partitioned, RowPartition};
use super::team::Team;
use crate::simd::{Groups, Isa, Kernels, Lanes, PackFor, Products, RowGrid, RowGridMut};
use crate::theta::split;
use crate::{Accum, DropoutKey, Element, Forward, KronOp, Outer, Result};

/// Packed C, B and A; for each partition, masked columns of X, T and U by blocks, and packed U.
pub(super) fn layout(isa: Isa, op: &KronOp, partition: RowPartition) -> CallLayout<3, 4> {
    let (s, packed) = (&op.shape, PackedLen::new(isa));
    let n = partition.block;
    let (t, u, packed_u) = match s.rank() {
        Some(r) => (op.t_len(n), n * s.a_out() * r, packed.groups(n * s.a_out(), r)),
        // U meets Y at once.
        None => (0, 0, 0),
    };
    CallLayout::new(
        partition,
        [
            ("packed C", packed.c(s, PackFor::Down)),
            ("packed B", packed.b(s, PackFor::Up)),
            ("packed A", packed.groups(s.a_out(), s.a_in())),
        ],
        [("masked X", Mask::scratch_len(op, n)), ("T", t), ("U", u), ("packed U", packed_u)],
    )
}

pub(super) fn run<E: Element>(cpu: Cpu, op: &KronOp, call: Forward<'_, Cpu, E>) -> Result<()> {
    let rows = call.x.nrows();
    let layout = layout(cpu.isa, op, RowPartition::new(Partitioned::Forward, &op.shape, rows));
    check::forward(op, &call, layout.workspace_len())?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let Forward { theta, x, y, accum, t, workspace, dropout } = call;
    let t = &mut t[..op.t_len(rows)];
    let rows = Rows { first: 0, x: RowGrid::of_view(x, 1), y: RowGridMut::of_view(y, 1), accum, t, dropout };
    compute(cpu.team, kernels, op, theta, rows, &layout, workspace);
    Ok(())
}

/// Activations of a call that is checked; X and Y have one block per row.
pub(super) struct Rows<'a, E> {
    /// Number of X's first row, where no table chooses its rows.
    pub first: usize,
    pub x: RowGrid<'a, E>,
    pub y: RowGridMut<'a, E>,
    pub accum: Accum,
    /// T of exactly these rows.
    pub t: &'a mut [f32],
    pub dropout: Option<DropoutKey>,
}

/// Computes a call that is checked, in a workspace of the layout.
pub(super) fn compute<E: Element>(
    team: Team,
    kernels: Kernels,
    op: &KronOp,
    theta: &[f32],
    call: Rows<'_, E>,
    layout: &CallLayout<3, 4>,
    workspace: &mut [f32],
) {
    let Rows { first, x, mut y, accum, t, dropout } = call;
    let rows = x.layout().n;
    if rows == 0 {
        return;
    }
    let mask = Mask::new(op, dropout);
    let theta = split(&op.shape, theta);
    let ([packed_c, packed_b, packed_a], scratch) = layout.split(workspace);
    // Packing C gains nothing when so few rows read it.
    let direct = rows * op.shape.a_in() <= 3 && mask.is_none();
    let (down, c) = if direct {
        let k = kernels.float32();
        (k, k.unpacked(PackFor::Down, theta.c, op.shape.c_in()))
    } else {
        let keep = mask.map_or(1.0, |m| m.keep_scale());
        (kernels, kernels.pack(c_factor(&op.shape, theta.c, keep), PackFor::Down, packed_c))
    };
    let b = b_factor(&op.shape, theta.b).map(|b| kernels.pack(b, PackFor::Up, packed_b));
    // With a full inner factor U meets Y at once, so A brings the scale.
    let a_scale = if b.is_none() { op.scale.get() } else { 1.0 };
    let a = (b.is_none() || op.shape.outer() == Outer::Trained).then(|| {
        kernels.float32().groups(theta.a, (1, op.shape.a_out(), op.shape.a_in()), a_scale, packed_a)
    });
    let RowPartition { part, block, .. } = layout.partition;
    let job = Job { op: *op, kernels, down, a, b, c, mask, accum, block, scratch: layout.scratch };
    let parts = t.chunks_mut(op.t_len(part)).zip(scratch.chunks_mut(layout.scratch_len()));
    let parts = parts.enumerate().map(|(i, (t, scratch))| {
        let (skip, n) = (i * part, part.min(rows - i * part));
        (first + skip, x.tokens(skip, n), y.split_off_front(n), t, scratch)
    });
    team.each(parts, |_, (first, x, y, t, scratch)| job.part(first, x, y, t, scratch));
}

/// Operands that all partitions share.
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
    scratch: Layout<4>,
}

impl Job<'_> {
    /// Computes one partition, block by block; `first` is its first row.
    fn part<E: Element>(
        &self,
        first: usize,
        x: RowGrid<E>,
        mut y: RowGridMut<E>,
        t: &mut [f32],
        scratch: &mut [f32],
    ) {
        let rows = x.layout().n;
        let [masked, tt, u, packed_u] = self.scratch.split(scratch);
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            let t = &mut t[self.op.t_len(r)..self.op.t_len(r + n)];
            self.down(first + r, x.tokens(r, n), t, masked);
            self.up(n, t, &mut y.tokens(r, n).blocks(self.op.shape.a_out()), (tt, u, packed_u));
        }
    }

    /// Computes T = X·Cᵀ of rows `row`…, which select the mask.
    fn down<E: Element>(&self, row: usize, x: RowGrid<E>, t: &mut [f32], masked: &mut [f32]) {
        let (s, n) = (&self.op.shape, x.layout().n);
        let (a, w) = (s.a_in(), s.width());
        let mut t = RowGridMut::new(t, n, a, (a * w, w), w);
        let Some(mask) = self.mask else {
            return self.down.down(x.blocks(a), self.c, &mut t, false);
        };
        for k in (0..s.c_in()).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, k, masked);
            self.down.down(x, self.c.after(self.down.panels(PackFor::Down, k)), &mut t, k > 0);
        }
    }

    /// Computes U = A·T and Y (+)= s·U·Bᵀ; the scratch holds T and U by blocks, and U packed.
    fn up<E: Element>(
        &self,
        n: usize,
        t: &[f32],
        y: &mut RowGridMut<E>,
        (tt, u, packed_u): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let (s, w, k) = (&self.op.shape, self.op.shape.width(), self.kernels);
        match (self.b, self.a) {
            (Some(b), a) => {
                let (tt, u) = (&mut tt[..self.op.t_len(n)], &mut u[..n * s.a_out() * w]);
                blocks_first(t, (n, s.a_in(), w), tt);
                mix(k, a, tt, u);
                k.up(k.groups(u, (n, s.a_out(), w), self.op.scale.get(), packed_u), b, y, self.accum);
            }
            (None, Some(a)) => {
                for i in 0..n {
                    let t = &t[self.op.t_len(i)..self.op.t_len(i + 1)];
                    let t = k.float32().unpacked(PackFor::Up, t, w);
                    k.float32().up(a, t, &mut y.tokens(i, 1), self.accum);
                }
            }
            (None, None) => unreachable!("a full inner factor always has A in groups"),
        }
    }
}
