//! One adapter of a backward call: its packed operands, and its products over a block of rows.

use super::layout::{CallLayout, Layout};
use super::masked::{MASKED_COLUMNS, Mask};
use super::mix::{a_is_first_back, blocks_first, mix, transpose, v_tokens};
use super::packed::{b_factor, c_factor};
use crate::simd::{Factor, Groups, Kernels, Lanes, LanesMut, PackFor, RUN, RowGrid, RowGridMut, Rows};
use crate::theta::{split, split_mut};
use crate::{Accum, Element, KronOp, Outer};

/// Layout of backward's workspace.
#[derive(Clone, Copy)]
pub(super) struct BackwardLayout {
    /// Packed B, for V too where A is last, packed C and A, Aᵀ, packed Aᵀ and all gradients; for each
    /// partition, dT and packed dT by blocks; T, U, dU and packed U by blocks, or packed V or Z, V, Z and packed
    /// T; and masked columns of X or dX.
    pub call: CallLayout<7, 7>,
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
    /// Kernels of dX.
    pub up: Kernels,
    kernels: Kernels,
    /// A and Aᵀ in groups; `None` for LoRA's \[1\].
    a: Option<Groups<'a>>,
    a_t: Option<Groups<'a>>,
    b: Option<Lanes<'a>>,
    /// A as the scalars of Z and B as V's factor, where A is last and B low-rank.
    last: Option<(Rows<'a>, Lanes<'a>)>,
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
        [packed_b, b_for_v, packed_c, packed_a, a_rows, packed_a_t]: [&'a mut [f32]; 6],
    ) -> Self {
        let s = &op.shape;
        let rows = layout.call.partition.parts * layout.call.partition.part;
        // Packing C gains nothing when so few rows read it.
        let direct = rows * s.a_in() <= 3 && mask.is_none();
        // A masked dX is summed in float32 first, so that it is rounded once.
        let up = if direct || mask.is_some() { kernels.float32() } else { kernels };
        let keep = mask.map_or(1.0, |m| m.keep_scale());
        let theta = split(s, theta);
        let (f32s, factor) = (kernels.float32(), b_factor(s, theta.b));
        let down = if a_is_first_back(s) { f32s } else { kernels };
        let b = factor.map(|b| down.pack(b, PackFor::Down, packed_b));
        let c = dx.then(|| {
            if direct {
                up.unpacked(PackFor::Up, theta.c, s.c_in())
            } else {
                up.pack(c_factor(s, theta.c, keep), PackFor::Up, packed_c)
            }
        });
        let (mut a, mut a_t, mut last, dims) = (None, None, None, (s.a_out(), s.a_in()));
        if let Some(b) = factor.filter(|_| a_is_first_back(s)) {
            let a = kernels.rows(theta.a, (dims.0, 1, dims.1), 1.0, packed_a);
            last = Some((a, f32s.pack(b, PackFor::Up, b_for_v)));
        } else if s.outer() == Outer::Trained {
            a = Some(f32s.groups(theta.a, (1, dims.0, dims.1), 1.0, packed_a));
            transpose(theta.a, dims, a_rows);
            a_t = Some(f32s.groups(a_rows, (1, dims.1, dims.0), 1.0, packed_a_t));
        }
        Self { op, layout, mask, c, kernels, up, a, a_t, b, last, dy, t }
    }

    /// Returns true if dC is summed in the caller's gradient: so few rows that one sum is added to each element.
    pub(super) fn adds_dc(&self) -> bool {
        let partition = self.layout.call.partition;
        partition.parts == 1
            && partition.part <= partition.block
            && partition.part * self.op.shape.a_in() <= RUN
            && self.mask.is_none()
            && self.op.shape.c_in().is_multiple_of(self.kernels.lanes())
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
        if !self.adds_dc() {
            let keep = self.mask.map_or(1.0, |m| m.keep_scale());
            self.kernels.unpack_add(c_factor(s, &[], keep), dc, grad.c);
        }
    }
}

/// A term's gradient and scratch of a partition. A block uses the first part of each piece.
pub(super) struct TermPart<'a, E> {
    pub term: &'a Term<'a, E>,
    da: &'a mut [f32],
    db: &'a mut [f32],
    dc: LanesMut<'a>,
    dt: &'a mut [f32],
    packed_dt: &'a mut [f32],
    /// T, or packed V and then packed Z of one token.
    tt: &'a mut [f32],
    /// U or V.
    product: &'a mut [f32],
    /// dU or Z.
    d_product: &'a mut [f32],
    /// Packed U or T.
    scalars: &'a mut [f32],
    masked: &'a mut [f32],
}

impl<'a, E: Element> TermPart<'a, E> {
    /// Splits a partition's gradient, which starts at zero, and its scratch; dC may be added to the
    /// caller's gradient instead.
    pub(super) fn new(
        term: &'a Term<'a, E>,
        (grad, sum): (&'a mut [f32], Option<&'a mut [f32]>),
        scratch: &'a mut [f32],
    ) -> Self {
        let (k, s) = (term.kernels, &term.op.shape);
        let [da, db, dc] = term.layout.gradient.split(grad);
        da.fill(0.0);
        db.fill(0.0);
        let sum = sum.and_then(|sum| k.rank_major_gradient(s.c_in(), split_mut(s, sum).c));
        let dc = sum.unwrap_or_else(|| {
            dc.fill(0.0);
            k.packed_gradient(s.width(), dc)
        });
        let [dt, packed_dt, tt, product, d_product, scalars, masked] =
            term.layout.call.scratch.split(scratch);
        Self { term, da, db, dc, dt, packed_dt, tt, product, d_product, scalars, masked }
    }

    /// Computes dA, dB and dT (\[a_in, n, r\]) of the call's rows `row`…row+n−1.
    pub(super) fn output(&mut self, row: usize, n: usize) {
        let (op, dy) = (&self.term.op, self.term.dy.tokens(row, n));
        let t = &self.term.t[op.t_len(row)..op.t_len(row + n)];
        match (self.term.b, self.term.last) {
            (Some(b), Some(last)) => self.output_last(b, last, t, dy),
            (Some(b), None) => self.output_low_rank(b, t, dy),
            (None, _) => self.output_full(t, dy),
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
        let (u, du) = (&mut self.product[..u_len], &mut self.d_product[..u_len]);
        let dy = dy.blocks(a_out);
        k.down(dy, b, &mut RowGridMut::new(du, n, a_out, (r, n * r), r), false);
        du.iter_mut().for_each(|du| *du *= scale);
        blocks_first(t, (n, a_in, r), tt);
        mix(k, term.a, tt, u);
        let db = &mut k.packed_gradient(r, self.db);
        k.outer(k.rows(u, (n, a_out, r), scale, self.scalars), dy, db);
        mix(k, term.a_t, du, dt);
        if s.outer() == Outer::Trained {
            let len = n * r;
            let du = RowGrid::new(du, 1, a_out, (a_out * len, len), len);
            let mut da = RowGridMut::new(self.da, 1, a_out, (a_out * a_in, a_in), a_in);
            f32s.down(du, f32s.unpacked(PackFor::Down, tt, len), &mut da, true);
        }
    }

    /// Computes V and Z, then dA, dB and dT from them, a few tokens at a time.
    fn output_last(&mut self, b: Lanes, (a, b_for_v): (Rows, Lanes), t: &[f32], dy: RowGrid<E>) {
        let (term, n) = (self.term, dy.layout().n);
        let (op, k, f32s) = (&term.op, term.kernels, term.kernels.float32());
        let (s, scale) = (&op.shape, op.scale.get());
        let (a_out, a_in, b_out, r) = (s.a_out(), s.a_in(), s.b_out(), s.width());
        let like = Factor { data: &[], ranks: a_in, width: b_out, rank_major: true, times: scale };
        let step = v_tokens(s).min(n).max(1);
        for first in (0..n).step_by(step) {
            let m = step.min(n - first);
            let (rows, len) = (m * a_in, a_in * b_out);
            let t = &t[op.t_len(first)..op.t_len(first + m)];
            let (v, z) = (&mut self.product[..m * len], &mut self.d_product[..m * len]);
            let groups = f32s.groups(t, (rows, 1, r), 1.0, self.scalars);
            let mut grid = RowGridMut::new(v, rows, 1, (b_out, b_out), b_out);
            f32s.up(&[(groups, b_for_v)], &mut grid, Accum::Replace);
            z.fill(0.0);
            for (i, (v, z)) in v.chunks_exact(len).zip(z.chunks_exact_mut(len)).enumerate() {
                let dy = dy.tokens(first + i, 1).compact().blocks(a_out);
                let v = k.pack(Factor { data: v, ..like }, PackFor::Down, self.tt);
                let mut da = RowGridMut::new(self.da, 1, a_out, (a_out * a_in, a_in), a_in);
                k.down(dy, v, &mut da, true);
                self.tt.fill(0.0);
                k.outer(a, dy, &mut k.packed_gradient(a_in, self.tt));
                k.unpack_add(like, self.tt, z);
            }
            let mut dt = RowGridMut::new(&mut self.dt[first * r..], m, a_in, (r, n * r), r);
            f32s.down(RowGrid::new(z, m, a_in, (len, b_out), b_out), b, &mut dt, false);
            let z = RowGrid::new(z, rows, 1, (b_out, b_out), b_out);
            let db = &mut k.packed_gradient(r, self.db);
            f32s.outer(f32s.rows(t, (rows, 1, r), 1.0, self.scalars), z, db);
        }
    }

    /// Computes dA and dT with a full inner factor, where dU = s·dY, one row at a time.
    fn output_full(&mut self, t: &[f32], dy: RowGrid<E>) {
        let (term, n, scale) = (self.term, dy.layout().n, self.term.op.scale.get());
        let s = &term.op.shape;
        let (a_out, a_in, w) = (s.a_out(), s.a_in(), s.width());
        let k = term.kernels.float32();
        let (du, dt) = (&mut self.d_product[..a_out * w], &mut self.dt[..term.op.t_len(n)]);
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
            return k.outer(rows, x.blocks(a), &mut self.dc);
        };
        for column in (0..c_in).step_by(MASKED_COLUMNS) {
            let x = mask.copy(row, x, column, self.masked);
            k.outer(rows, x, &mut self.dc.after(column / lanes));
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
