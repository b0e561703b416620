//! One adapter of a backward call: its packed operands, and its products over a block of rows.

use super::layout::{CallLayout, Layout};
use super::masked::{MASKED_COLUMNS, Mask};
use super::mix::{blocks_first, mix, transpose};
use super::packed::{b_factor, c_factor};
use crate::simd::{Groups, Kernels, Lanes, PackFor, RowGrid, RowGridMut};
use crate::theta::{split, split_mut};
use crate::{Accum, Element, KronOp, Outer};

/// Layout of backward's workspace.
#[derive(Clone, Copy)]
pub(super) struct BackwardLayout {
    /// Packed B, C and A, Aᵀ, packed Aᵀ and all gradients; for each partition, dT, packed dT, T,
    /// U, dU and packed U by blocks, and masked columns of X or dX.
    pub call: CallLayout<6, 7>,
    /// A partition's gradient: dA row-major, dB and dC as `outer` sums them.
    pub gradient: Layout<3>,
}

/// Operands that all partitions share.
pub(super) struct Term<'a, E> {
    pub op: KronOp,
    pub layout: BackwardLayout,
    pub mask: Option<Mask>,
    /// C for dX, if dX is asked for.
    pub c: Option<Lanes<'a>>,
    kernels: Kernels,
    up: Kernels,
    /// A and Aᵀ in groups; `None` for LoRA's \[1\].
    a: Option<Groups<'a>>,
    a_t: Option<Groups<'a>>,
    b: Option<Lanes<'a>>,
    dy: RowGrid<'a, E>,
    t: &'a [f32],
}

impl<'a, E: Element> Term<'a, E> {
    /// Packs the factors.
    #[allow(clippy::too_many_arguments)] // a term and where it is packed
    pub(super) fn new(
        kernels: Kernels,
        op: KronOp,
        theta: &'a [f32],
        (dy, t): (RowGrid<'a, E>, &'a [f32]),
        dx: bool,
        mask: Option<Mask>,
        layout: BackwardLayout,
        [packed_b, packed_c, packed_a, a_rows, packed_a_t]: [&'a mut [f32]; 5],
    ) -> Self {
        let s = &op.shape;
        // A masked dX is summed in float32 first, so that it is rounded once.
        let up = if mask.is_some() { kernels.float32() } else { kernels };
        let keep = mask.map_or(1.0, |m| m.keep_scale());
        let theta = split(s, theta);
        let b = b_factor(s, theta.b).map(|b| kernels.pack(b, PackFor::Down, packed_b));
        let c = dx.then(|| up.pack(c_factor(s, theta.c, keep), PackFor::Up, packed_c));
        let (mut a, mut a_t) = (None, None);
        if s.outer() == Outer::Trained {
            let (k, dims) = (kernels.float32(), (s.a_out(), s.a_in()));
            a = Some(k.groups(theta.a, (1, dims.0, dims.1), 1.0, packed_a));
            transpose(theta.a, dims, a_rows);
            a_t = Some(k.groups(a_rows, (1, dims.1, dims.0), 1.0, packed_a_t));
        }
        Self { op, layout, mask, c, kernels, up, a, a_t, b, dy, t }
    }

    /// Returns true if dX of this term and the next may be one sum.
    pub(super) fn is_summed_with(&self, next: &Self) -> bool {
        self.op.shape.a_in() == next.op.shape.a_in() && self.mask.is_none() && next.mask.is_none()
    }

    /// Adds the sum of the partitions' gradients to `grad`.
    pub(super) fn add_gradient(&self, sum: &mut [f32], grad: &mut [f32]) {
        let s = &self.op.shape;
        let [da, db, dc] = self.layout.gradient.split(sum);
        let grad = split_mut(s, grad);
        grad.a.iter_mut().zip(&*da).for_each(|(g, sum)| *g += sum);
        // Only the factors' sizes are read.
        if let Some(b) = b_factor(s, &[]) {
            self.kernels.unpack_add(b, db, grad.b);
        }
        let keep = self.mask.map_or(1.0, |m| m.keep_scale());
        self.kernels.unpack_add(c_factor(s, &[], keep), dc, grad.c);
    }
}

/// A term's gradient and scratch of a partition. A block uses the first part of each piece.
pub(super) struct TermPart<'a, E> {
    pub term: &'a Term<'a, E>,
    da: &'a mut [f32],
    db: &'a mut [f32],
    dc: &'a mut [f32],
    dt: &'a mut [f32],
    packed_dt: &'a mut [f32],
    tt: &'a mut [f32],
    u: &'a mut [f32],
    du: &'a mut [f32],
    packed_u: &'a mut [f32],
    masked: &'a mut [f32],
}

impl<'a, E: Element> TermPart<'a, E> {
    /// Splits a partition's gradient, which starts at zero, and its scratch.
    pub(super) fn new(term: &'a Term<'a, E>, grad: &'a mut [f32], scratch: &'a mut [f32]) -> Self {
        grad.fill(0.0);
        let [da, db, dc] = term.layout.gradient.split(grad);
        let [dt, packed_dt, tt, u, du, packed_u, masked] = term.layout.call.scratch.split(scratch);
        Self { term, da, db, dc, dt, packed_dt, tt, u, du, packed_u, masked }
    }

    /// Computes dA, dB and dT (\[a_in, n, r\]) of the call's rows `row`…row+n−1.
    pub(super) fn output(&mut self, row: usize, n: usize) {
        let (op, dy) = (&self.term.op, self.term.dy.tokens(row, n));
        let t = &self.term.t[op.t_len(row)..op.t_len(row + n)];
        match self.term.b {
            Some(b) => self.output_low_rank(b, t, dy),
            None => self.output_full(t, dy),
        }
    }

    /// Computes dU, dB, dA and dT from dY.
    fn output_low_rank(&mut self, b: Lanes, t: &[f32], dy: RowGrid<E>) {
        let (term, n, scale) = (self.term, dy.layout().n, self.term.op.scale.get());
        let s = &term.op.shape;
        let (a_out, a_in, r) = (s.a_out(), s.a_in(), s.width());
        let (k, f32s) = (term.kernels, term.kernels.float32());
        let (t_len, u_len) = (term.op.t_len(n), n * a_out * r);
        let (tt, dt) = (&mut self.tt[..t_len], &mut self.dt[..t_len]);
        let (u, du) = (&mut self.u[..u_len], &mut self.du[..u_len]);
        let dy = dy.blocks(a_out);
        k.down(dy, b, &mut RowGridMut::new(du, n, a_out, (r, n * r), r), false);
        du.iter_mut().for_each(|du| *du *= scale);
        blocks_first(t, (n, a_in, r), tt);
        mix(k, term.a, tt, u);
        k.outer(k.rows(u, (n, a_out, r), scale, self.packed_u), dy, self.db);
        mix(k, term.a_t, du, dt);
        if s.outer() == Outer::Trained {
            let len = n * r;
            let du = RowGrid::new(du, 1, a_out, (a_out * len, len), len);
            let mut da = RowGridMut::new(self.da, 1, a_out, (a_out * a_in, a_in), a_in);
            f32s.down(du, f32s.unpacked(PackFor::Down, tt, len), &mut da, true);
        }
    }

    /// Computes dA and dT with a full inner factor, where dU = s·dY, one row at a time.
    fn output_full(&mut self, t: &[f32], dy: RowGrid<E>) {
        let (term, n, scale) = (self.term, dy.layout().n, self.term.op.scale.get());
        let s = &term.op.shape;
        let (a_out, a_in, w) = (s.a_out(), s.a_in(), s.width());
        let k = term.kernels.float32();
        let (du, dt) = (&mut self.du[..a_out * w], &mut self.dt[..term.op.t_len(n)]);
        for i in 0..n {
            du.iter_mut().zip(dy.slice(i)).for_each(|(du, dy)| *du = scale * dy.to_f32());
            let Some(a_t) = term.a_t else {
                dt[i * w..][..w].copy_from_slice(du);
                continue;
            };
            let mut dt = RowGridMut::new(&mut dt[i * w..], 1, a_in, (a_in * n * w, n * w), w);
            k.up(&[(a_t, k.unpacked(PackFor::Up, du, w))], &mut dt, Accum::Replace);
            let t = k.unpacked(PackFor::Down, &t[term.op.t_len(i)..term.op.t_len(i + 1)], w);
            let mut da = RowGridMut::new(self.da, 1, a_out, (a_out * a_in, a_in), a_in);
            k.down(RowGrid::new(du, 1, a_out, (a_out * w, w), w), t, &mut da, true);
        }
    }

    /// Computes dC from dT and the X of rows `row`….
    pub(super) fn input(&mut self, row: usize, x: RowGrid<E>) {
        let (term, n) = (self.term, x.layout().n);
        let (s, k) = (&term.op.shape, term.kernels);
        let (a, w, c_in, lanes) = (s.a_in(), s.width(), s.c_in(), k.lanes());
        let rows = k.rows(&self.dt[..term.op.t_len(n)], (n, a, w), 1.0, self.packed_dt);
        let Some(mask) = term.mask else {
            return k.outer(rows, x.blocks(a), self.dc);
        };
        for column in (0..c_in).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, column, self.masked);
            k.outer(rows, x, &mut self.dc[column / lanes * lanes * w..]);
        }
    }

    /// Packs dT of `n` rows for dX.
    pub(super) fn groups(&mut self, n: usize) -> Groups<'_> {
        let Term { op, up, .. } = self.term;
        up.groups(&self.dt[..op.t_len(n)], (n, op.shape.a_in(), op.shape.width()), 1.0, self.packed_dt)
    }

    /// Computes dX (+)= m ⊙ dT·C of rows `row`….
    pub(super) fn masked_dx(&mut self, row: usize, dx: &mut RowGridMut<E>, mask: Mask, accum: Accum) {
        let (n, Term { op, up, c: Some(c), .. }) = (dx.layout().n, self.term) else { return };
        let (a, w, c_in) = (op.shape.a_in(), op.shape.width(), op.shape.c_in());
        let groups = up.groups(&self.dt[..op.t_len(n)], (n, a, w), 1.0, self.packed_dt);
        for k in (0..c_in).step_by(MASKED_COLUMNS) {
            let cols = MASKED_COLUMNS.min(c_in - k);
            let d = &mut self.masked[..n * a * cols];
            let mut grid = RowGridMut::new(d, n, a, (a * cols, cols), cols);
            let c = c.after(up.panels(PackFor::Up, k));
            up.up(&[(groups, c)], &mut grid, Accum::Replace);
            mask.add(row, d, k, cols, dx, accum);
        }
    }
}
