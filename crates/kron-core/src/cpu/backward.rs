//! dU = s·dY·B, dB += s·Σ dYᵀ·U, dT = Aᵀ·dU, dA += Σ dU·Tᵀ, dC += Σ dTᵀ·X, dX (+)= dT·C.

use super::check;
use super::device::Cpu;
use super::layout::{CallLayout, Layout};
use super::masked::{MASKED_COLUMNS, Mask};
use super::mix::{blocks_first, mix, transpose};
use super::packed::{PackedLen, b_factor, c_factor};
use super::partition::{MAX_PARTS, Partitioned, RowPartition};
use super::team::Team;
use crate::simd::{Groups, Isa, Kernels, Lanes, PackFor, Products, RowGrid, RowGridMut};
use crate::theta::{split, split_mut};
use crate::{Accum, Backward, DropoutKey, Element, KronOp, Outer, Result};

/// Layout of backward's workspace.
pub(super) struct BackwardLayout {
    /// Packed B, C and A, Aᵀ, packed Aᵀ and all gradients; for each partition, dT, packed dT, T,
    /// U, dU and packed U by blocks, and masked columns of X or dX.
    pub call: CallLayout<6, 7>,
    /// A partition's gradient: dA row-major, dB and dC as `outer` sums them.
    pub gradient: Layout<3>,
}

/// Lays out the workspace of a call, with dX or without.
pub(super) fn layout(isa: Isa, op: &KronOp, partition: RowPartition, dx: bool) -> BackwardLayout {
    let (s, packed) = (&op.shape, PackedLen::new(isa));
    let (n, w) = (partition.block, s.width());
    let gradient = Layout::new([
        ("dA", s.a_len()),
        ("dB", s.rank().map_or(0, |r| packed.gradient(r, s.b_out()))),
        ("dC", packed.gradient(w, s.c_in())),
    ]);
    let groups = |rows, ranks| if s.outer() == Outer::Trained { packed.groups(rows, ranks) } else { 0 };
    let (t, u, du) = match s.rank() {
        Some(r) => (op.t_len(n), n * s.a_out() * r, n * s.a_out() * r),
        // One row of dU.
        None => (0, 0, s.d_out()),
    };
    let call = CallLayout::new(
        partition,
        [
            ("packed B", packed.b(s, PackFor::Down)),
            ("packed C", if dx { packed.c(s, PackFor::Up) } else { 0 }),
            ("packed A", groups(s.a_out(), s.a_in())),
            ("A transposed", s.a_len()),
            ("packed A transposed", groups(s.a_in(), s.a_out())),
            ("gradients", partition.parts * gradient.len()),
        ],
        [
            ("dT", op.t_len(n)),
            // Rows for `outer`, then groups for `up`, which take at least as many elements.
            ("packed dT", packed.groups(n * s.a_in(), w)),
            ("T", t),
            ("U", u),
            ("dU", du),
            ("packed U", u),
            ("masked X", Mask::scratch_len(op, n)),
        ],
    );
    BackwardLayout { call, gradient }
}

pub(super) fn run<E: Element>(cpu: Cpu, op: &KronOp, call: Backward<'_, Cpu, E>) -> Result<()> {
    let rows = call.x.nrows();
    let partition = RowPartition::new(Partitioned::Backward, &op.shape, rows);
    let layout = layout(cpu.isa, op, partition, call.dx.is_some());
    check::backward(op, &call, layout.call.workspace_len())?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let Backward { theta, x, t, dy, dx, grad, workspace, dropout } = call;
    let (x, dy) = (RowGrid::of_view(x, 1), RowGrid::of_view(dy, 1));
    let dx = dx.map(|(dx, accum)| (RowGridMut::of_view(dx, 1), accum));
    let rows = Rows { first: 0, x, t: &t[..op.t_len(rows)], dy, dx, dropout };
    compute(cpu.team, kernels, op, theta, rows, grad, &layout, workspace);
    Ok(())
}

/// Activations of a call that is checked; X, dY and dX have one block per row.
pub(super) struct Rows<'a, E> {
    /// Number of X's first row, where no table chooses its rows.
    pub first: usize,
    pub x: RowGrid<'a, E>,
    /// T of exactly these rows.
    pub t: &'a [f32],
    pub dy: RowGrid<'a, E>,
    pub dx: Dx<'a, E>,
    pub dropout: Option<DropoutKey>,
}

/// Computes a call that is checked, in a workspace of the layout.
#[allow(clippy::too_many_arguments)] // a call and where it runs
pub(super) fn compute<E: Element>(
    team: Team,
    kernels: Kernels,
    op: &KronOp,
    theta: &[f32],
    call: Rows<'_, E>,
    grad: &mut [f32],
    layout: &BackwardLayout,
    workspace: &mut [f32],
) {
    let Rows { first, x, t, dy, dx, dropout } = call;
    if x.layout().n == 0 {
        return;
    }
    let (&BackwardLayout { call: layout, gradient }, s) = (layout, &op.shape);
    let mask = Mask::new(op, dropout);
    // A masked dX is summed in float32 first, so that it is rounded once.
    let up = if mask.is_some() { kernels.float32() } else { kernels };
    let keep = mask.map_or(1.0, |m| m.keep_scale());
    let theta = split(s, theta);
    let ([packed_b, packed_c, packed_a, a_rows, packed_a_t, grads], scratch) = layout.split(workspace);
    let b = b_factor(s, theta.b).map(|b| kernels.pack(b, PackFor::Down, packed_b));
    let c = dx.is_some().then(|| up.pack(c_factor(s, theta.c, keep), PackFor::Up, packed_c));
    let (mut a, mut a_t) = (None, None);
    if s.outer() == Outer::Trained {
        let (k, dims) = (kernels.float32(), (s.a_out(), s.a_in()));
        a = Some(k.groups(theta.a, (1, dims.0, dims.1), 1.0, packed_a));
        transpose(theta.a, dims, a_rows);
        a_t = Some(k.groups(a_rows, (1, dims.1, dims.0), 1.0, packed_a_t));
    }
    let job = Job { team, op: *op, kernels, up, a, a_t, b, c, mask, layout, gradient };
    job.parts(first, x, t, dy, dx, grads, scratch);
    let [da, db, dc] = gradient.split(reduce(team, grads, gradient.len()));
    let grad = split_mut(s, grad);
    grad.a.iter_mut().zip(&*da).for_each(|(g, sum)| *g += sum);
    if let Some(b) = b_factor(s, theta.b) {
        kernels.unpack_add(b, db, grad.b);
    }
    kernels.unpack_add(c_factor(s, theta.c, keep), dc, grad.c);
}

/// Adds the partitions' gradients, first to last, into the first.
fn reduce(team: Team, grads: &mut [f32], len: usize) -> &mut [f32] {
    /// Least elements of a piece that is worth a thread.
    const PIECE: usize = 4096;
    let (sum, rest) = grads.split_at_mut(len);
    let team = if rest.len() > 64 * PIECE { team } else { Team::Caller };
    let piece = len.div_ceil(MAX_PARTS).max(PIECE);
    team.each(sum.chunks_mut(piece), |i, sum| {
        for part in rest.chunks_exact(len) {
            let part = &part[i * piece..][..sum.len()];
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
    });
    sum
}

/// dX, and the treatment of its old contents.
pub(super) type Dx<'a, E> = Option<(RowGridMut<'a, E>, Accum)>;

/// Operands that all partitions share.
struct Job<'a> {
    team: Team,
    op: KronOp,
    kernels: Kernels,
    up: Kernels,
    /// A and Aᵀ in groups; `None` for LoRA's \[1\].
    a: Option<Groups<'a>>,
    a_t: Option<Groups<'a>>,
    b: Option<Lanes<'a>>,
    c: Option<Lanes<'a>>,
    mask: Option<Mask>,
    layout: CallLayout<6, 7>,
    gradient: Layout<3>,
}

/// Scratch of a partition. A block uses the first part of each piece.
struct Scratch<'a> {
    dt: &'a mut [f32],
    packed_dt: &'a mut [f32],
    tt: &'a mut [f32],
    u: &'a mut [f32],
    du: &'a mut [f32],
    packed_u: &'a mut [f32],
    masked: &'a mut [f32],
}

impl Job<'_> {
    /// Computes every partition in parallel.
    #[allow(clippy::too_many_arguments)] // the slices of all partitions
    fn parts<E: Element>(
        &self,
        first: usize,
        x: RowGrid<E>,
        t: &[f32],
        dy: RowGrid<E>,
        mut dx: Dx<'_, E>,
        grads: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (part, rows) = (self.layout.partition.part, x.layout().n);
        let parts = t.chunks(self.op.t_len(part)).zip(grads.chunks_mut(self.gradient.len()));
        let parts = parts.zip(scratch.chunks_mut(self.layout.scratch_len())).enumerate();
        let parts = parts.map(|(i, ((t, grad), scratch))| {
            let (skip, n) = (i * part, part.min(rows - i * part));
            let dx = dx.as_mut().map(|(dx, accum)| (dx.split_off_front(n), *accum));
            (first + skip, x.tokens(skip, n), t, dy.tokens(skip, n), dx, grad, scratch)
        });
        self.team.each(parts, |_, (first, x, t, dy, dx, grad, scratch)| {
            self.part(first, x, t, dy, dx, grad, scratch);
        });
    }

    /// Computes one partition, block by block, into one gradient; `first` is its first row.
    #[allow(clippy::too_many_arguments)] // the slices of one partition
    fn part<E: Element>(
        &self,
        first: usize,
        x: RowGrid<E>,
        t: &[f32],
        dy: RowGrid<E>,
        mut dx: Dx<'_, E>,
        grad: &mut [f32],
        scratch: &mut [f32],
    ) {
        grad.fill(0.0);
        let [da, db, dc] = self.gradient.split(grad);
        let [dt, packed_dt, tt, u, du, packed_u, masked] = self.layout.scratch.split(scratch);
        let mut scratch = Scratch { dt, packed_dt, tt, u, du, packed_u, masked };
        let (rows, block) = (x.layout().n, self.layout.partition.block);
        for r in (0..rows).step_by(block) {
            let n = block.min(rows - r);
            let t = &t[self.op.t_len(r)..self.op.t_len(r + n)];
            let dy = dy.tokens(r, n);
            match self.b {
                Some(b) => self.output_low_rank(b, t, dy, (&mut *da, &mut *db), &mut scratch),
                None => self.output_full(t, dy, da, &mut scratch),
            }
            let dx = dx.as_mut().map(|(dx, accum)| (dx.tokens(r, n), *accum));
            self.input(first + r, x.tokens(r, n), dx, dc, &mut scratch);
        }
    }

    /// Computes dU, dB, dA and dT (\[a_in, n, r\]) from dY.
    fn output_low_rank<E: Element>(
        &self,
        b: Lanes,
        t: &[f32],
        dy: RowGrid<E>,
        (da, db): (&mut [f32], &mut [f32]),
        scratch: &mut Scratch,
    ) {
        let (s, n, scale) = (&self.op.shape, dy.layout().n, self.op.scale.get());
        let (a_out, a_in, r) = (s.a_out(), s.a_in(), s.width());
        let (k, f32s) = (self.kernels, self.kernels.float32());
        let (t_len, u_len) = (self.op.t_len(n), n * a_out * r);
        let (tt, dt) = (&mut scratch.tt[..t_len], &mut scratch.dt[..t_len]);
        let (u, du) = (&mut scratch.u[..u_len], &mut scratch.du[..u_len]);
        let dy = dy.blocks(a_out);
        k.down(dy, b, &mut RowGridMut::new(du, n, a_out, (r, n * r), r), false);
        du.iter_mut().for_each(|du| *du *= scale);
        blocks_first(t, (n, a_in, r), tt);
        mix(k, self.a, tt, u);
        k.outer(k.rows(u, (n, a_out, r), scale, scratch.packed_u), dy, db);
        mix(k, self.a_t, du, dt);
        if s.outer() == Outer::Trained {
            let len = n * r;
            let du = RowGrid::new(du, 1, a_out, (a_out * len, len), len);
            let mut da = RowGridMut::new(da, 1, a_out, (a_out * a_in, a_in), a_in);
            f32s.down(du, f32s.unpacked(PackFor::Down, tt, len), &mut da, true);
        }
    }

    /// Computes dA and dT with a full inner factor, where dU = s·dY, one row at a time.
    fn output_full<E: Element>(&self, t: &[f32], dy: RowGrid<E>, da: &mut [f32], scratch: &mut Scratch) {
        let (s, n, scale) = (&self.op.shape, dy.layout().n, self.op.scale.get());
        let (a_out, a_in, w) = (s.a_out(), s.a_in(), s.width());
        let k = self.kernels.float32();
        let (du, dt) = (&mut scratch.du[..a_out * w], &mut scratch.dt[..self.op.t_len(n)]);
        for i in 0..n {
            du.iter_mut().zip(dy.slice(i)).for_each(|(du, dy)| *du = scale * dy.to_f32());
            let Some(a_t) = self.a_t else {
                dt[i * w..][..w].copy_from_slice(du);
                continue;
            };
            let mut dt = RowGridMut::new(&mut dt[i * w..], 1, a_in, (a_in * n * w, n * w), w);
            k.up(a_t, k.unpacked(PackFor::Up, du, w), &mut dt, Accum::Replace);
            let t = k.unpacked(PackFor::Down, &t[self.op.t_len(i)..self.op.t_len(i + 1)], w);
            let mut da = RowGridMut::new(da, 1, a_out, (a_out * a_in, a_in), a_in);
            k.down(RowGrid::new(du, 1, a_out, (a_out * w, w), w), t, &mut da, true);
        }
    }

    /// Computes dC and dX from dT.
    fn input<E: Element>(
        &self,
        row: usize,
        x: RowGrid<E>,
        dx: Dx<'_, E>,
        dc: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (s, n) = (&self.op.shape, x.layout().n);
        let (a, w, c_in) = (s.a_in(), s.width(), s.c_in());
        let dt = &scratch.dt[..self.op.t_len(n)];
        let Scratch { packed_dt, masked, .. } = scratch;
        let Some(mask) = self.mask else {
            let rows = self.kernels.rows(dt, (n, a, w), 1.0, packed_dt);
            self.kernels.outer(rows, x.blocks(a), dc);
            if let (Some((mut dx, accum)), Some(c)) = (dx, self.c) {
                let groups = self.up.groups(dt, (n, a, w), 1.0, packed_dt);
                self.up.up(groups, c, &mut dx.blocks(a), accum);
            }
            return;
        };
        let lanes = self.kernels.lanes();
        let rows = self.kernels.rows(dt, (n, a, w), 1.0, packed_dt);
        for k in (0..c_in).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, k, masked);
            self.kernels.outer(rows, x, &mut dc[k / lanes * lanes * w..]);
        }
        if let (Some((mut dx, accum)), Some(c)) = (dx, self.c) {
            let groups = self.up.groups(dt, (n, a, w), 1.0, packed_dt);
            for k in (0..c_in).step_by(MASKED_COLUMNS) {
                let cols = MASKED_COLUMNS.min(c_in - k);
                let d = &mut masked[..n * a * cols];
                let mut grid = RowGridMut::new(d, n, a, (a * cols, cols), cols);
                self.up.up(groups, c.after(self.up.panels(PackFor::Up, k)), &mut grid, Accum::Replace);
                mask.add(row, d, k, cols, &mut dx, accum);
            }
        }
    }
}
