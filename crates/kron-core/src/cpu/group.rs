//! [`AdapterGroup`], and the arguments of calls over several adapters on one X.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::theta::check_len;
use crate::{Accum, DropoutKey, Error, KronOp, KronShape, Result};

/// One adapter of an [`AdapterGroup`].
#[derive(Clone, Copy, Debug)]
pub struct GroupTerm<'a> {
    /// Shape, scale and dropout.
    pub op: KronOp,
    /// θ, \[A | B | C\].
    pub theta: &'a [f32],
    /// Number of the Y that it adds to.
    pub output: usize,
    /// Key of the dropout mask; `None` in evaluation.
    pub dropout: Option<DropoutKey>,
}

/// Adapters that read one X, such as those of q, k and v, or the terms of a sum; checked once.
///
/// Neighbouring terms of one output and one a_out are summed in registers before Y is met, and neighbouring
/// terms of one a_in and no mask before dX is, with one rounding.
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
pub struct AdapterGroup<'a> {
    terms: &'a [GroupTerm<'a>],
    outputs: usize,
}

impl<'a> AdapterGroup<'a> {
    /// Largest number of terms.
    pub const MAX_TERMS: usize = 16;

    /// Returns the group of these terms, of outputs numbered from 0.
    ///
    /// # Errors
    /// Fails without a term, with more than [`AdapterGroup::MAX_TERMS`], on terms of different d_in, on terms
    /// of one output with different d_out, on an output without a term below one that has one, and on a θ
    /// whose length is not its shape's.
    pub fn new(terms: &'a [GroupTerm<'a>]) -> Result<Self> {
        let outputs = Self::check_shapes(terms.iter().map(|term| (&term.op.shape, term.output)))?;
        for GroupTerm { op, theta, .. } in terms {
            check_len("theta", &op.shape, theta.len())?;
        }
        Ok(Self { terms, outputs })
    }

    /// Checks the shape and the output of each term of a group, on any device; returns the number of outputs.
    ///
    /// # Errors
    /// As [`AdapterGroup::new`], but for the lengths of θ.
    pub fn check_shapes<'s>(
        terms: impl ExactSizeIterator<Item = (&'s KronShape, usize)> + Clone,
    ) -> Result<usize> {
        let (count, most) = (terms.len(), Self::MAX_TERMS);
        let Some((first, _)) = terms.clone().next().filter(|_| count <= most) else {
            return Err(Error::Value(format!("the group has {count} terms, but it has 1 to {most}")));
        };
        let d_out = |of: usize| terms.clone().find(|&(_, output)| output == of).map(|(s, _)| s.d_out());
        for (k, (s, output)) in terms.clone().enumerate() {
            let d_in = first.d_in();
            if s.d_in() != d_in {
                return Err(Error::Shape(format!("term {k} is {s}, but the group's d_in is {d_in}")));
            }
            if let Some(d_out) = d_out(output).filter(|&d_out| d_out != s.d_out()) {
                return Err(Error::Shape(format!(
                    "term {k} is {s}, but d_out of output {output} is {d_out}"
                )));
            }
        }
        let outputs = terms.clone().map(|(_, output)| output.saturating_add(1)).max().unwrap_or(0);
        match (0..outputs).find(|&output| d_out(output).is_none()) {
            None => Ok(outputs),
            Some(output) => Err(Error::Value(format!(
                "output {output} has no term, but every output below {outputs} needs one"
            ))),
        }
    }

    /// The terms.
    pub const fn terms(&self) -> &'a [GroupTerm<'a>] {
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
    pub(super) fn shapes(&self) -> impl Iterator<Item = &'a KronShape> + Clone + use<'a> {
        self.terms.iter().map(|term| &term.op.shape)
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
