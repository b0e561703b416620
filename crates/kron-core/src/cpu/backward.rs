//! dU = s·dY·B, dB += s·Σ dYᵀ·U, dT = Aᵀ·dU, dA += Σ dU·Tᵀ, dC += Σ dTᵀ·X, dX (+)= dT·C,
//! for one adapter or for several on one X. With A last in forward, it is first here:
//! V = s·T·Bᵀ, Z = s·Aᵀ·dY, dA += Σ dY·Vᵀ, dB += Σ Zᵀ·T, dT = Z·B.

use super::check;
use super::device::Cpu;
use super::layout::{CallLayout, Layout};
use super::masked::Mask;
use super::mix::{a_is_first_back, v_tokens};
use super::packed::PackedLen;
use super::partition::{MAX_PARTS, Partitioned, RowPartition};
use super::team::Team;
use super::term::{BackwardLayout, Term, TermPart};
use crate::simd::{Isa, Kernels, PackFor, Products, RowGrid, RowGridMut};
use crate::{Accum, Backward, DropoutKey, Element, KronOp, Outer, Result};

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
    let last = s.rank().filter(|_| a_is_first_back(s));
    let (t, product, d_product, scalars) = match s.rank() {
        Some(r) if last.is_some() => {
            let rows = v_tokens(s).min(n) * s.a_in();
            (packed.gradient(s.a_in(), s.b_out()), rows * s.b_out(), rows * s.b_out(), packed.groups(rows, r))
        }
        Some(r) => (op.t_len(n), n * s.a_out() * r, n * s.a_out() * r, n * s.a_out() * r),
        // One row of dU.
        None => (0, 0, s.d_out(), 0),
    };
    let call = CallLayout::new(
        partition,
        [
            ("packed B", packed.b(s, PackFor::Down)),
            ("packed B for V", last.map_or(0, |_| packed.b(s, PackFor::Up))),
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
            ("T, packed V or packed Z", t),
            ("U or V", product),
            ("dU or Z", d_product),
            ("packed U or T", scalars),
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
    let dx = dx.map(|(dx, accum)| (RowGridMut::of_view(dx, 1), accum));
    let t = &t[..op.t_len(rows)];
    let term = TermCall { op, theta, dy: RowGrid::of_view(dy, 1), dropout, t, grad, layout, workspace };
    compute(cpu.team, kernels, Rows { first: 0, x: RowGrid::of_view(x, 1), dx }, [Some(term)]);
    Ok(())
}

/// dX, and the treatment of its old contents.
pub(super) type Dx<'a, E> = Option<(RowGridMut<'a, E>, Accum)>;

/// Activations of a call that is checked; X and dX have one block per row.
pub(super) struct Rows<'a, E> {
    /// Number of X's first row, where no table chooses its rows.
    pub first: usize,
    pub x: RowGrid<'a, E>,
    pub dx: Dx<'a, E>,
}

/// One adapter of a call that is checked.
pub(super) struct TermCall<'a, E> {
    pub op: &'a KronOp,
    pub theta: &'a [f32],
    /// dY of its output, with one block per row.
    pub dy: RowGrid<'a, E>,
    pub dropout: Option<DropoutKey>,
    /// T of exactly the call's rows.
    pub t: &'a [f32],
    pub grad: &'a mut [f32],
    /// Layout of the workspace, with the partition of all terms.
    pub layout: BackwardLayout,
    pub workspace: &'a mut [f32],
}

/// Computes a call of up to `N` terms, those that are there first.
pub(super) fn compute<E: Element, const N: usize>(
    team: Team,
    kernels: Kernels,
    call: Rows<'_, E>,
    mut calls: [Option<TermCall<'_, E>>; N],
) {
    let Rows { first, x, mut dx } = call;
    let (rows, layout) = (x.layout().n, calls.iter().flatten().map(|term| term.layout.call).next());
    let Some(RowPartition { parts, part, block }) = layout.map(|l| l.partition).filter(|_| rows > 0) else {
        return;
    };
    let (mut scratches, mut grads) = ([const { None }; N], [const { None }; N]);
    let terms: [Option<Term<E>>; N] = std::array::from_fn(|k| {
        let TermCall { op, theta, dy, dropout, t, grad, layout, workspace } = calls[k].take()?;
        let ([shared @ .., parts], scratch) = layout.call.split(workspace);
        scratches[k] = Some(scratch.chunks_mut(layout.call.scratch_len()));
        grads[k] = Some((parts, grad));
        let mask = Mask::new(op, dropout);
        Some(Term::new(kernels, *op, theta, (dy, t), dx.is_some(), mask, layout, shared))
    });
    let job = Job { terms, block };
    let mut part_grads =
        grads.each_mut().map(|grad| grad.as_mut().map(|(parts, grad)| (&mut **parts, &mut **grad)));
    let parts = (0..parts).map(|i| {
        let (skip, n) = (i * part, part.min(rows - i * part));
        let dx = dx.as_mut().map(|(dx, accum)| (dx.split_off_front(n), *accum));
        let scratch = std::array::from_fn(|k| {
            let term = job.terms[k].as_ref()?;
            let (parts, grad) = part_grads[k].as_mut()?;
            let part = parts.split_off_mut(..term.layout.gradient.len())?;
            let sum = term.adds_dc().then(|| std::mem::take(grad));
            Some(((part, sum), scratches[k].as_mut()?.next()?))
        });
        (skip, first + skip, x.tokens(skip, n), dx, scratch)
    });
    team.each(parts, |_, (skip, first, x, dx, scratch)| job.part(skip, first, x, dx, scratch));
    for (term, grad) in job.terms.iter().zip(grads) {
        if let (Some(term), Some((parts, grad))) = (term, grad) {
            term.add_gradient(reduce(team, parts, term.layout.gradient.len()), grad);
        }
    }
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

/// A term's gradient of a partition, perhaps the caller's too, and its scratch.
type PartMemory<'a> = ((&'a mut [f32], Option<&'a mut [f32]>), &'a mut [f32]);

/// Operands that all partitions share.
struct Job<'a, E, const N: usize> {
    terms: [Option<Term<'a, E>>; N],
    block: usize,
}

impl<E: Element, const N: usize> Job<'_, E, N> {
    /// Computes one partition, block by block; `first` is its first row, and `skip` its distance from the call's.
    /// A term brings its gradient and its scratch.
    fn part(
        &self,
        skip: usize,
        first: usize,
        x: RowGrid<E>,
        mut dx: Dx<'_, E>,
        scratch: [Option<PartMemory>; N],
    ) {
        let mut parts: [Option<TermPart<E>>; N] = {
            let mut terms = scratch.into_iter().zip(&self.terms);
            std::array::from_fn(|_| {
                let (scratch, term) = terms.next()?;
                let ((grad, scratch), term) = (scratch?, term.as_ref()?);
                Some(TermPart::new(term, grad, scratch))
            })
        };
        let rows = x.layout().n;
        for r in (0..rows).step_by(self.block) {
            let n = self.block.min(rows - r);
            let x = x.tokens(r, n);
            for part in parts.iter_mut().flatten() {
                part.output(skip + r, n);
            }
            for part in parts.iter_mut().flatten() {
                part.input(first + r, x);
            }
            if let Some((dx, accum)) = &mut dx {
                self.dx(first + r, dx.tokens(r, n), *accum, &mut parts);
            }
        }
    }

    /// Computes dX of rows `row`…. Neighbouring terms of one a_in and no mask are summed first.
    fn dx(&self, row: usize, mut dx: RowGridMut<E>, mut accum: Accum, parts: &mut [Option<TermPart<E>>; N]) {
        let n = dx.layout().n;
        let together = |p: &Option<TermPart<E>>, q: &Option<TermPart<E>>| match (p, q) {
            (Some(p), Some(q)) => p.term.is_summed_with(q.term),
            _ => false,
        };
        for parts in parts.chunk_by_mut(together) {
            let Some(head) = &mut parts[0] else { return };
            if let Some(mask) = head.term.mask {
                head.masked_dx(row, &mut dx, mask, accum);
            } else {
                let (a_in, up) = (head.term.op.shape.a_in(), head.term.up);
                let (mut operands, mut count) = ([Default::default(); N], 0);
                for part in parts.iter_mut().flatten() {
                    if let Some(c) = part.term.c {
                        operands[count] = (part.groups(n), c);
                        count += 1;
                    }
                }
                up.up(&operands[..count], &mut dx.blocks(a_in), accum);
            }
            accum = Accum::Add;
        }
    }
}
