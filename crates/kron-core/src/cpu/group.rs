//! [`Group`], and the arguments of calls over several adapters on one X.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::theta::{ThetaBuffer, check_len};
use crate::{Accum, Dropout, DropoutKey, Error, KronOp, KronShape, Result};

/// One adapter of a [`Group`], with its θ in memory of some kind.
#[derive(Clone, Copy, Debug)]
pub struct GroupTerm<F> {
    /// Shape, scale and dropout.
    pub op: KronOp,
    /// θ, \[A | B | C\].
    pub theta: F,
    /// Number of the Y that it adds to.
    pub output: usize,
    /// Key of the dropout mask; `None` in evaluation.
    pub dropout: Option<DropoutKey>,
}

/// Adapters that read one X, such as those of q, k and v, or the terms of a sum; checked once.
///
/// On the host neighbouring terms of one output and one a_out are summed in registers before Y is met, and
/// neighbouring terms of one a_in and no mask before dX is, with one rounding.
///
/// ```
/// use kron_core::{AdapterGroup, GroupTerm, KronOp, KronShape, LayerDims, Scale, Split, Theta};
///
/// // ΔW = s·(A₁ ⊗ B₁C₁ + A₂ ⊗ B₂C₂): two terms of one output.
/// let shape = KronShape::kron(LayerDims { d_out: 48, d_in: 70 }, Split { a_out: 3, a_in: 7 }, 4)?;
/// let op = KronOp::new(shape, Scale::new(0.5)?);
/// let thetas = [1, 2].map(|seed| Theta::random(shape, seed));
/// let terms = thetas.each_ref().map(|theta| GroupTerm {
///     op, theta: theta.as_slice(), output: 0, dropout: None,
/// });
/// let group = AdapterGroup::new(&terms)?;
/// assert_eq!((group.outputs(), group.t_len(10)), (1, 2 * 10 * 7 * 4));
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Group<'a, F> {
    terms: &'a [GroupTerm<F>],
    outputs: usize,
}

/// Group of adapters in the host's memory.
pub type AdapterGroup<'a> = Group<'a, &'a [f32]>;

impl<'a, F: ThetaBuffer> Group<'a, F> {
    /// Returns the group of these terms, of outputs numbered from 0.
    ///
    /// # Errors
    /// Fails without a term, with more than [`Group::MAX_TERMS`], on terms of different d_in, on terms
    /// of one output with different d_out, on an output without a term below one that has one, and on a θ
    /// whose length is not its shape's.
    pub fn new(terms: &'a [GroupTerm<F>]) -> Result<Self> {
        let (count, most) = (terms.len(), Self::MAX_TERMS);
        if count == 0 || count > most {
            return Err(Error::Value(format!("the group has {count} terms, but it has 1 to {most}")));
        }
        let outputs = terms.iter().map(|term| term.output.saturating_add(1)).max().unwrap_or(0);
        let group = Self { terms, outputs };
        for (k, GroupTerm { op, theta, output, .. }) in terms.iter().enumerate() {
            let (s, d_in) = (&op.shape, group.d_in());
            if s.d_in() != d_in {
                return Err(Error::Shape(format!("term {k} is {s}, but the group's d_in is {d_in}")));
            }
            if let Some(d_out) = group.d_out(*output).filter(|&d_out| d_out != s.d_out()) {
                return Err(Error::Shape(format!(
                    "term {k} is {s}, but d_out of output {output} is {d_out}"
                )));
            }
            check_len("theta", s, theta.elements())?;
        }
        match (0..outputs).find(|&output| group.d_out(output).is_none()) {
            None => Ok(group),
            Some(output) => Err(Error::Value(format!(
                "output {output} has no term, but every output below {outputs} needs one"
            ))),
        }
    }
}

impl<'a, F> Group<'a, F> {
    /// Largest number of terms.
    pub const MAX_TERMS: usize = 16;

    /// The terms.
    pub const fn terms(&self) -> &'a [GroupTerm<F>] {
        self.terms
    }

    /// Number of outputs.
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Input width of all terms.
    pub fn d_in(&self) -> usize {
        self.terms[0].op.shape.d_in()
    }

    /// Width of an output; `None` if no term has it.
    pub fn d_out(&self, output: usize) -> Option<usize> {
        self.terms.iter().find(|term| term.output == output).map(|term| term.op.shape.d_out())
    }

    /// Elements of T for `rows` rows: those of the terms, one after the other.
    pub fn t_len(&self, rows: usize) -> usize {
        self.terms.iter().fold(0, |len, term| len.saturating_add(term.op.t_len(rows)))
    }

    /// Shapes of the terms.
    pub fn shapes(&self) -> impl Iterator<Item = &'a KronShape> + Clone + use<'a, F> {
        self.terms.iter().map(|term| &term.op.shape)
    }

    /// Terms, each with the range of T that is its own.
    pub fn with_t(
        &self,
        rows: usize,
    ) -> impl Iterator<Item = (&'a GroupTerm<F>, std::ops::Range<usize>)> + use<'a, F> {
        self.terms.iter().scan(0, move |at, term| {
            let begin: usize = *at;
            *at = begin.saturating_add(term.op.t_len(rows));
            Some((term, begin..*at))
        })
    }

    /// True if all terms drop the same elements of X, or none.
    pub fn has_one_mask(&self) -> bool {
        let mask = |term: &GroupTerm<F>| {
            term.dropout.filter(|_| term.op.dropout != Dropout::NONE).map(|key| (term.op.dropout, key))
        };
        self.terms.iter().all(|term| mask(term) == mask(&self.terms[0]))
    }
}

/// Arguments of [`Cpu::forward_group`](crate::Cpu::forward_group), which has an example.
#[derive(Debug)]
pub struct ForwardGroup<'a, 'v, E> {
    /// X, n × d_in; the inner stride is 1.
    pub x: ArrayView2<'a, E>,
    /// Y of each output, n × its d_out, and the treatment of its old contents; the inner stride is 1.
    pub ys: &'a mut [(ArrayViewMut2<'v, E>, Accum)],
    /// T, at least [`AdapterGroup::t_len`] elements; written. Keep it for backward.
    pub t: &'a mut [f32],
    /// Scratch, at least [`Cpu::group_workspace_len`](crate::Cpu::group_workspace_len) elements; its contents are lost.
    pub workspace: &'a mut [f32],
}

/// Arguments of [`Cpu::backward_group`](crate::Cpu::backward_group), which has an example.
#[derive(Debug)]
pub struct BackwardGroup<'a, 'v, E> {
    /// X of the forward call, n × d_in.
    pub x: ArrayView2<'a, E>,
    /// T of the forward call.
    pub t: &'a [f32],
    /// dY of each output, n × its d_out.
    pub dys: &'a [ArrayView2<'a, E>],
    /// dX, n × d_in, and the treatment of its old contents; `None` skips dX.
    pub dx: Option<(ArrayViewMut2<'a, E>, Accum)>,
    /// \[dA | dB | dC\] of each term, always added to.
    pub grads: &'a mut [&'v mut [f32]],
    /// Scratch, at least [`Cpu::group_workspace_len`](crate::Cpu::group_workspace_len) elements; its contents are lost.
    pub workspace: &'a mut [f32],
}
