//! Calls over a group: several adapters on one X, on the host or on a device.

use kron_core::{AdapterGroup, DropoutKey, Element, KronOp, KronShape, Pass, Result};

use crate::call::{accum, checked, extent, floats, key, matrix};
use crate::dispatch::{Job, dispatch};
use crate::dtype::with_dtype;
use crate::group_backend::{GroupBackward, GroupForward, Groups, Term};
use crate::overlap::{self, Span};
use crate::types::{KronBackwardGroup, KronDevice, KronForwardGroup, KronManySizes, KronTerm};
use crate::{fork, refuse};

/// The terms of a call; of their memory only the keys were read.
pub(crate) struct Terms {
    terms: Vec<Parsed>,
    outputs: usize,
}

struct Parsed {
    op: KronOp,
    theta: *const f32,
    output: usize,
    dropout: Option<DropoutKey>,
}

impl Terms {
    /// Parses the terms of a group.
    ///
    /// # Safety
    /// `terms` points to `count` structs, and each key is null or points to a KronKey.
    pub(crate) unsafe fn parse(terms: *const KronTerm, count: usize) -> Result<Self> {
        let most = AdapterGroup::MAX_TERMS;
        if count > most {
            return Err(refuse("terms", format!("{count} elements"), format!("a group has 1 to {most}")));
        }
        let terms = checked("terms", terms, count)?;
        let mut parsed = Vec::with_capacity(count);
        for i in 0..count {
            // SAFETY: the caller's promise; the pointer is aligned, and i is below its count.
            let KronTerm { op, theta, output, key: dropout } = unsafe { *terms.add(i) };
            let op = op.parse()?;
            let theta = floats("theta", theta, op.shape.params())?;
            parsed.push(Parsed { op, theta, output, dropout: key(dropout) });
        }
        let outputs = AdapterGroup::check_shapes(parsed.iter().map(|term| (&term.op.shape, term.output)))?;
        Ok(Self { terms: parsed, outputs })
    }

    /// Returns the terms with the backend's θ.
    ///
    /// # Safety
    /// Each theta holds the elements that its op describes, in the backend's memory.
    unsafe fn on<'a, B: Groups>(&self) -> Vec<Term<'a, B>> {
        let term = |&Parsed { op, theta, output, dropout }: &Parsed| {
            // SAFETY: the pointer was checked for null and alignment, and the caller promises its contents.
            let theta = unsafe { B::floats(theta, op.shape.params()) };
            Term { op, theta, output, dropout }
        };
        self.terms.iter().map(term).collect()
    }

    fn shapes(&self) -> impl Iterator<Item = &KronShape> {
        self.terms.iter().map(|term| &term.op.shape)
    }

    fn d_in(&self) -> usize {
        self.shapes().next().map_or(0, KronShape::d_in)
    }

    fn d_out(&self, output: usize) -> usize {
        self.terms.iter().find(|term| term.output == output).map_or(0, |term| term.op.shape.d_out())
    }

    fn t_len(&self, rows: usize) -> Result<usize> {
        extent::<f32>(
            "t",
            rows,
            self.terms.iter().fold(0, |len: usize, term| len.saturating_add(term.op.t_len(1))),
        )
    }

    /// Fails unless the call has as many outputs as the group.
    fn check_outputs(&self, outputs: usize) -> Result<()> {
        if outputs == self.outputs {
            return Ok(());
        }
        Err(refuse("outputs", format!("the value {outputs}"), format!("the group has {}", self.outputs)))
    }

    fn thetas(&self) -> impl Iterator<Item = Span> {
        self.terms.iter().map(|term| Span::floats("theta", term.theta, term.op.shape.params()))
    }
}

/// Writes the lengths of the buffers of a call over `rows` rows.
///
/// # Safety
/// The pointers of the terms hold the elements that they describe.
pub(crate) unsafe fn sizes(
    device: Option<KronDevice>,
    terms: &Terms,
    rows: usize,
    sizes: &mut KronManySizes,
) -> Result<()> {
    struct Sizes<'a> {
        terms: &'a Terms,
        rows: usize,
        sizes: &'a mut KronManySizes,
    }
    impl Job for Sizes<'_> {
        fn on<B: Groups>(self, on: &B) -> Result<()> {
            // SAFETY: the promise of `sizes`' caller.
            let terms = unsafe { self.terms.on::<B>() };
            let len = |pass| on.group_len(&terms, pass, self.rows);
            let (forward, backward) = (len(Pass::Forward)?, len(Pass::Backward { dx: true })?);
            *self.sizes = KronManySizes { t: self.terms.t_len(self.rows)?, forward, backward };
            Ok(())
        }
    }
    dispatch(device, Sizes { terms, rows, sizes })
}

/// A call over a group.
pub(crate) trait GroupCall: Copy {
    fn dtype(&self) -> u32;
    /// # Safety
    /// The pointers of the struct and of the terms hold the elements that they describe, of type E, in the
    /// backend's memory.
    unsafe fn run<B: Groups, E: Element>(&self, on: &B, terms: &Terms) -> Result<()>;
}

/// Runs a call with the type that it names, on the backend that it names.
///
/// # Safety
/// The pointers of the struct and of the terms hold the elements that they describe.
pub(crate) unsafe fn run<C: GroupCall>(device: Option<KronDevice>, terms: &Terms, call: C) -> Result<()> {
    struct Run<'a, C> {
        terms: &'a Terms,
        call: C,
    }
    impl<C: GroupCall> Job for Run<'_, C> {
        fn on<B: Groups>(self, on: &B) -> Result<()> {
            // SAFETY: the promise of `run`'s caller; the arm is the struct's dtype.
            unsafe { with_dtype!(self.call.dtype(), E => self.call.run::<B, E>(on, self.terms)) }
        }
    }
    if device.is_none() {
        fork::prepare_host()?;
    }
    dispatch(device, Run { terms, call })
}

impl GroupCall for KronForwardGroup {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: Groups, E: Element>(&self, on: &B, terms: &Terms) -> Result<()> {
        let n = self.rows;
        terms.check_outputs(self.outputs)?;
        let x = matrix("x", self.x.cast::<E>(), n, terms.d_in(), self.x_stride)?;
        let t_len = terms.t_len(n)?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let outputs = checked("ys", self.ys, self.outputs)?;
        let mut ys = Vec::with_capacity(self.outputs);
        for i in 0..self.outputs {
            // SAFETY: the caller promises a struct for each output; the pointer is aligned and not null.
            let output = unsafe { *outputs.add(i) };
            let y = matrix("y", output.y.cast::<E>().cast_const(), n, terms.d_out(i), output.y_stride)?;
            ys.push((y, accum(output.accumulate)?));
        }
        let mut written: Vec<Span> = ys.iter().map(|(y, _)| Span::rows("y", y)).collect();
        written.push(Span::floats("t", t, t_len));
        written.push(Span::floats("workspace", workspace, self.workspace_len));
        let mut read = vec![Span::rows("x", &x)];
        read.extend(terms.thetas());
        overlap::check(&written, &read)?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let ys = ys.into_iter().map(|(y, accum)| (unsafe { B::rows_mut(y.written()) }, accum)).collect();
        // SAFETY: as above.
        let (terms, call) = unsafe {
            (
                terms.on::<B>(),
                GroupForward {
                    x: B::rows(x),
                    ys,
                    t: B::floats_mut(t.cast_mut(), t_len),
                    workspace: B::floats_mut(workspace.cast_mut(), self.workspace_len),
                },
            )
        };
        on.group_forward(&terms, call)
    }
}

impl GroupCall for KronBackwardGroup {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: Groups, E: Element>(&self, on: &B, terms: &Terms) -> Result<()> {
        let n = self.rows;
        terms.check_outputs(self.outputs)?;
        let x = matrix("x", self.x.cast::<E>(), n, terms.d_in(), self.x_stride)?;
        let dx = match self.dx.is_null() {
            true => None,
            false => Some(matrix("dx", self.dx.cast::<E>().cast_const(), n, terms.d_in(), self.dx_stride)?),
        };
        let t_len = terms.t_len(n)?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let accum = accum(self.accumulate)?;
        let (outputs, pointers) =
            (checked("dys", self.dys, self.outputs)?, checked("grads", self.grads, terms.terms.len())?);
        let mut dys = Vec::with_capacity(self.outputs);
        for i in 0..self.outputs {
            // SAFETY: the caller promises a struct for each output; the pointer is aligned and not null.
            let output = unsafe { *outputs.add(i) };
            dys.push(matrix("dy", output.dy.cast::<E>(), n, terms.d_out(i), output.dy_stride)?);
        }
        let mut grads = Vec::with_capacity(terms.terms.len());
        for (i, shape) in terms.shapes().enumerate() {
            // SAFETY: the caller promises a pointer for each term; `grads` is aligned and not null.
            let pointer = unsafe { *pointers.add(i) };
            grads.push((floats("grad", pointer, shape.params())?, shape.params()));
        }
        let mut written: Vec<Span> = dx.iter().map(|dx| Span::rows("dx", dx)).collect();
        written.push(Span::floats("workspace", workspace, self.workspace_len));
        written.extend(grads.iter().map(|&(grad, len)| Span::floats("grad", grad, len)));
        let mut read = vec![Span::rows("x", &x), Span::floats("t", t, t_len)];
        read.extend(dys.iter().map(|dy| Span::rows("dy", dy)));
        read.extend(terms.thetas());
        overlap::check(&written, &read)?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let grads =
            grads.into_iter().map(|(grad, len)| unsafe { B::floats_mut(grad.cast_mut(), len) }).collect();
        // SAFETY: as above.
        let dys = dys.into_iter().map(|dy| unsafe { B::rows(dy) }).collect();
        // SAFETY: as above.
        let (terms, call) = unsafe {
            (
                terms.on::<B>(),
                GroupBackward {
                    x: B::rows(x),
                    t: B::floats(t, t_len),
                    dys,
                    dx: dx.map(|dx| (B::rows_mut(dx.written()), accum)),
                    grads,
                    workspace: B::floats_mut(workspace.cast_mut(), self.workspace_len),
                },
            )
        };
        on.group_backward(&terms, call)
    }
}
