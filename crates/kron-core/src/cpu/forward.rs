//! T = X·Cᵀ, U = A·T, Y (+)= s·U·Bᵀ, for one adapter or for several on one X; with A last,
//! V = T·Bᵀ, Y (+)= s·A·V.

use super::check;
use super::device::Cpu;
use super::layout::{CallLayout, Layout};
use super::masked::{MASKED_COLUMNS, Mask};
use super::mix::{a_is_last, blocks_first, mix, v_tokens};
use super::packed::{PackedLen, b_factor, c_factor};
use super::partition::{Partitioned, RowPartition};
use super::team::Team;
use crate::simd::{Groups, Isa, Kernels, Lanes, PackFor, Products, RowGrid, RowGridMut};
use crate::theta::split;
use crate::{Accum, DropoutKey, Element, Forward, KronOp, Outer, Result};

/// Packed C, B and A; for each partition, masked columns of X, and T and U by blocks and packed U, or
/// V and packed T.
pub(super) fn layout(isa: Isa, op: &KronOp, partition: RowPartition) -> CallLayout<3, 4> {
    let (s, packed) = (&op.shape, PackedLen::new(isa));
    let n = partition.block;
    let (t, product, scalars) = match s.rank() {
        Some(r) if a_is_last(s) => {
            let rows = v_tokens(s).min(n) * s.a_in();
            (0, rows * s.b_out(), packed.groups(rows, r))
        }
        Some(r) => (op.t_len(n), n * s.a_out() * r, packed.groups(n * s.a_out(), r)),
        // T is V.
        None => (0, 0, 0),
    };
    CallLayout::new(
        partition,
        [
            ("packed C", packed.c(s, PackFor::Down)),
            ("packed B", packed.b(s, PackFor::Up)),
            ("packed A", packed.groups(s.a_out(), s.a_in())),
        ],
        [("masked X", Mask::scratch_len(op, n)), ("T", t), ("U or V", product), ("packed U or T", scalars)],
    )
}

pub(super) fn run<E: Element>(cpu: Cpu, op: &KronOp, call: Forward<'_, Cpu, E>) -> Result<()> {
    let rows = call.x.nrows();
    let layout = layout(cpu.isa, op, RowPartition::new(Partitioned::Forward, &op.shape, rows));
    check::forward(op, &call, layout.workspace_len())?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let Forward { theta, x, y, accum, t, workspace, dropout } = call;
    let outputs = [Some((RowGridMut::of_view(y, 1), accum))];
    let t = &mut t[..op.t_len(rows)];
    let term = TermCall { op, theta, output: 0, dropout, t, layout, workspace };
    compute(cpu.team, kernels, Rows { first: 0, x: RowGrid::of_view(x, 1), outputs }, [Some(term)]);
    Ok(())
}

/// Activations of a call that is checked; X and the Ys have one block per row.
pub(super) struct Rows<'a, E, const N: usize> {
    /// Number of X's first row, where no table chooses its rows.
    pub first: usize,
    pub x: RowGrid<'a, E>,
    pub outputs: [Option<(RowGridMut<'a, E>, Accum)>; N],
}

/// One adapter of a call that is checked.
pub(super) struct TermCall<'a> {
    pub op: &'a KronOp,
    pub theta: &'a [f32],
    /// Index of its Y.
    pub output: usize,
    pub dropout: Option<DropoutKey>,
    /// T of exactly the call's rows.
    pub t: &'a mut [f32],
    /// Layout of the workspace, with the partition of all terms.
    pub layout: CallLayout<3, 4>,
    pub workspace: &'a mut [f32],
}

/// Computes a call of up to `N` terms, those that are there first.
pub(super) fn compute<E: Element, const N: usize>(
    team: Team,
    kernels: Kernels,
    call: Rows<'_, E, N>,
    mut calls: [Option<TermCall<'_>>; N],
) {
    let Rows { first, x, mut outputs } = call;
    let (rows, layout) = (x.layout().n, calls.iter().flatten().map(|term| term.layout).next());
    let Some(RowPartition { parts: count, part, block }) = layout.map(|l| l.partition).filter(|_| rows > 0)
    else {
        return;
    };
    let mut chunks = [const { None }; N];
    let terms = std::array::from_fn(|k| {
        let TermCall { op, theta, output, dropout, t, layout, workspace } = calls[k].take()?;
        let (shared, scratch) = layout.split(workspace);
        chunks[k] = Some((t.chunks_mut(op.t_len(part)), scratch.chunks_mut(layout.scratch_len())));
        let mask = Mask::new(op, dropout);
        Some(Term::new(kernels, *op, theta, output, mask, rows, layout.scratch, shared))
    });
    let accums = outputs.each_ref().map(|output| output.as_ref().map_or(Accum::Add, |(_, accum)| *accum));
    let job = Job { kernels, terms, accums, block };
    let parts = (0..count).map(|i| {
        let (skip, n) = (i * part, part.min(rows - i * part));
        let ys = outputs.each_mut().map(|output| output.as_mut().map(|(y, _)| y.split_off_front(n)));
        let terms = chunks.each_mut().map(|chunks| {
            let (t, scratch) = chunks.as_mut()?;
            Some((t.next()?, scratch.next()?))
        });
        (first + skip, x.tokens(skip, n), ys, terms)
    });
    team.for_short(count).each(parts, |_, (first, x, ys, terms)| job.part(first, x, ys, terms));
}

/// Operands that all partitions share.
struct Job<'a, const N: usize> {
    kernels: Kernels,
    terms: [Option<Term<'a>>; N],
    accums: [Accum; N],
    block: usize,
}

impl<const N: usize> Job<'_, N> {
    /// Computes one partition, block by block; `first` is its first row. A term brings its T and its scratch.
    fn part<E: Element>(
        &self,
        first: usize,
        x: RowGrid<E>,
        mut ys: [Option<RowGridMut<E>>; N],
        terms: [Option<(&mut [f32], &mut [f32])>; N],
    ) {
        let rows = x.layout().n;
        let mut terms: [Option<TermPart>; N] = {
            let mut terms = terms.into_iter().zip(&self.terms);
            std::array::from_fn(|_| {
                let (part, term) = terms.next()?;
                let ((t, scratch), term) = (part?, term.as_ref()?);
                let [masked, tt, product, scalars] = term.scratch.split(scratch);
                Some(TermPart { term, t, masked, tt, product, scalars })
            })
        };
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            for TermPart { term, t, masked, .. } in terms.iter_mut().flatten() {
                term.down(first + r, x.tokens(r, n), &mut t[term.op.t_len(r)..term.op.t_len(r + n)], masked);
            }
            self.up(r, n, &mut ys, &mut terms);
        }
    }

    /// Computes the rows r…r+n−1 of every Y. Neighbouring terms of one Y and one a_out are summed first.
    fn up<E: Element>(
        &self,
        r: usize,
        n: usize,
        ys: &mut [Option<RowGridMut<E>>; N],
        terms: &mut [Option<TermPart>; N],
    ) {
        let mut accums = self.accums;
        let together = |p: &Option<TermPart>, q: &Option<TermPart>| match (p, q) {
            (Some(p), Some(q)) => p.term.is_summed_with(q.term),
            _ => false,
        };
        for terms in terms.chunk_by_mut(together) {
            let Some(TermPart { term: head, .. }) = terms[0] else { return };
            let Some(y) = &mut ys[head.output] else { continue };
            let (mut y, accum) = (y.tokens(r, n), &mut accums[head.output]);
            let mut y = y.blocks(head.op.shape.a_out());
            if a_is_last(&head.op.shape) {
                self.a_last(r, n, &mut y, *accum, terms);
            } else {
                let (mut operands, mut count) = ([Default::default(); N], 0);
                for part in terms.iter_mut().flatten() {
                    let Some(b) = part.term.b else { continue };
                    operands[count] = (part.u(r, n), b);
                    count += 1;
                }
                self.kernels.up(&operands[..count], &mut y, *accum);
            }
            *accum = Accum::Add;
        }
    }

    /// Computes Y (+)= Σ s·A·V of terms with A last, one token at a time.
    fn a_last<E: Element>(
        &self,
        r: usize,
        n: usize,
        y: &mut RowGridMut<E>,
        accum: Accum,
        terms: &mut [Option<TermPart>],
    ) {
        let f32s = self.kernels.float32();
        let step = terms.iter().flatten().map(|part| v_tokens(&part.term.op.shape)).fold(n, usize::min);
        for first in (0..n).step_by(step.max(1)) {
            let m = step.min(n - first);
            let (mut vs, mut count) = ([Default::default(); N], 0);
            for part in terms.iter_mut().flatten() {
                let (a, width) = (part.term.a, part.term.op.shape.b_out());
                if let Some(a) = a {
                    vs[count] = (a, part.v(r + first, m), width);
                    count += 1;
                }
            }
            for i in 0..m {
                let operands = vs.map(|(a, v, width): (Groups, &[f32], usize)| {
                    let len = a.ranks() * width;
                    (a, f32s.unpacked(PackFor::Up, v.get(i * len..(i + 1) * len).unwrap_or_default(), width))
                });
                f32s.up(&operands[..count], &mut y.tokens(first + i, 1).compact(), accum);
            }
        }
    }
}

/// A term's part of a partition. A block uses the first part of each piece of scratch.
struct TermPart<'a> {
    term: &'a Term<'a>,
    t: &'a mut [f32],
    masked: &'a mut [f32],
    tt: &'a mut [f32],
    /// U or V.
    product: &'a mut [f32],
    /// Packed U or T.
    scalars: &'a mut [f32],
}

impl TermPart<'_> {
    /// Computes U = A·T of rows r…r+n−1 and packs s·U.
    fn u(&mut self, r: usize, n: usize) -> Groups<'_> {
        let (term, s) = (self.term, &self.term.op.shape);
        let w = s.width();
        let t = &self.t[term.op.t_len(r)..term.op.t_len(r + n)];
        let (tt, u) = (&mut self.tt[..t.len()], &mut self.product[..n * s.a_out() * w]);
        blocks_first(t, (n, s.a_in(), w), tt);
        mix(term.kernels, term.a, tt, u);
        term.kernels.groups(u, (n, s.a_out(), w), term.op.scale.get(), self.scalars)
    }

    /// Computes V = T·Bᵀ of rows r…r+n−1; with a full inner factor, T is V.
    fn v(&mut self, r: usize, n: usize) -> &[f32] {
        let (term, s, k) = (self.term, &self.term.op.shape, self.term.kernels.float32());
        let t = &self.t[term.op.t_len(r)..term.op.t_len(r + n)];
        let Some(b) = term.b else { return t };
        let (rows, width) = (n * s.a_in(), s.b_out());
        let v = &mut self.product[..rows * width];
        let t = k.groups(t, (rows, 1, s.width()), 1.0, self.scalars);
        k.up(&[(t, b)], &mut RowGridMut::new(v, rows, 1, (width, width), width), Accum::Replace);
        v
    }
}

/// Operands of one adapter.
struct Term<'a> {
    op: KronOp,
    output: usize,
    kernels: Kernels,
    down: Kernels,
    /// A in groups, times s where it is last; `None` for LoRA's \[1\].
    a: Option<Groups<'a>>,
    b: Option<Lanes<'a>>,
    c: Lanes<'a>,
    mask: Option<Mask>,
    scratch: Layout<4>,
}

impl<'a> Term<'a> {
    /// Packs the factors for a call over `rows` rows.
    #[allow(clippy::too_many_arguments)] // a term and where it is packed
    fn new(
        kernels: Kernels,
        op: KronOp,
        theta: &'a [f32],
        output: usize,
        mask: Option<Mask>,
        rows: usize,
        scratch: Layout<4>,
        [packed_c, packed_b, packed_a]: [&'a mut [f32]; 3],
    ) -> Self {
        let theta = split(&op.shape, theta);
        // Packing C gains nothing when so few rows read it.
        let direct = rows * op.shape.a_in() <= 3 && mask.is_none();
        let (down, c) = if direct {
            let k = kernels.float32();
            (k, k.unpacked(PackFor::Down, theta.c, op.shape.c_in()))
        } else {
            let keep = mask.map_or(1.0, |m| m.keep_scale());
            (kernels, kernels.pack(c_factor(&op.shape, theta.c, keep), PackFor::Down, packed_c))
        };
        let last = a_is_last(&op.shape);
        let up = if last { kernels.float32() } else { kernels };
        let b = b_factor(&op.shape, theta.b).map(|b| up.pack(b, PackFor::Up, packed_b));
        let a_scale = if last { op.scale.get() } else { 1.0 };
        let a = (last || op.shape.outer() == Outer::Trained).then(|| {
            kernels.float32().groups(theta.a, (1, op.shape.a_out(), op.shape.a_in()), a_scale, packed_a)
        });
        Self { op, output, kernels, down, a, b, c, mask, scratch }
    }

    /// Returns true if the products with B of this term and the next may be one sum.
    fn is_summed_with(&self, next: &Self) -> bool {
        self.output == next.output
            && self.op.shape.a_out() == next.op.shape.a_out()
            && a_is_last(&self.op.shape) == a_is_last(&next.op.shape)
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
}
