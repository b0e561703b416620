//! Calls over a group: several adapters on one X, on the host or on a device.

use kron_core::{Element, Group, GroupTerm, Pass, Result, ThetaBuffer};

use crate::call::{accum, checked, extent, floats, key, matrix};
use crate::dispatch::{Job, dispatch};
use crate::dtype::with_dtype;
use crate::group_backend::{GroupBackward, GroupForward, Groups};
use crate::overlap::{self, Span};
use crate::types::{KronBackwardGroup, KronDevice, KronForwardGroup, KronManySizes, KronTerm};
use crate::{fork, refuse};

/// θ of a term in the caller's memory, which may be a device's.
#[derive(Clone, Copy)]
pub(crate) struct Theta {
    pointer: *const f32,
    len: usize,
}

impl ThetaBuffer for Theta {
    fn elements(&self) -> usize {
        self.len
    }
}

/// A group whose θ lie in the caller's memory.
pub(crate) type Terms<'a> = Group<'a, Theta>;

/// Parses the terms of a group; of their memory only the keys are read.
///
/// # Safety
/// `terms` points to `count` structs, and each key is null or points to a KronKey.
pub(crate) unsafe fn parse(terms: *const KronTerm, count: usize) -> Result<Vec<GroupTerm<Theta>>> {
    let most = Terms::MAX_TERMS;
    if count > most {
        return Err(refuse("terms", format!("{count} elements"), format!("a group has 1 to {most}")));
    }
    let terms = checked("terms", terms, count)?;
    let parse = |i: usize| {
        // SAFETY: the caller's promise; the pointer is aligned, and i is below its count.
        let KronTerm { op, theta, output, key: dropout } = unsafe { *terms.add(i) };
        let op = op.parse()?;
        let len = op.shape.params();
        let theta = Theta { pointer: floats("theta", theta, len)?, len };
        Ok(GroupTerm { op, theta, output, dropout: key(dropout) })
    };
    (0..count).map(parse).collect()
}

/// Returns the terms with the backend's θ.
///
/// # Safety
/// Each theta holds the elements that its op describes, in the backend's memory.
unsafe fn on<'a, B: Groups>(group: &Terms) -> Vec<GroupTerm<B::Floats<'a>>> {
    let term = |&GroupTerm { op, theta: Theta { pointer, len }, output, dropout }: &GroupTerm<Theta>| {
        // SAFETY: the pointer was checked for null and alignment, and the caller promises its contents.
        GroupTerm { op, theta: unsafe { B::floats(pointer, len) }, output, dropout }
    };
    group.terms().iter().map(term).collect()
}

fn t_len(group: &Terms, rows: usize) -> Result<usize> {
    extent::<f32>("t", rows, group.t_len(1))
}

/// Fails unless the call has as many outputs as the group.
fn check_outputs(group: &Terms, outputs: usize) -> Result<()> {
    if outputs == group.outputs() {
        return Ok(());
    }
    Err(refuse("outputs", format!("the value {outputs}"), format!("the group has {}", group.outputs())))
}

fn thetas(group: &Terms) -> impl Iterator<Item = Span> {
    group.terms().iter().map(|term| Span::floats("theta", term.theta.pointer, term.theta.len))
}

/// Writes the lengths of the buffers of a call over `rows` rows.
///
/// # Safety
/// The pointers of the terms hold the elements that they describe.
pub(crate) unsafe fn sizes(
    device: Option<KronDevice>,
    group: &Terms,
    rows: usize,
    sizes: &mut KronManySizes,
) -> Result<()> {
    struct Sizes<'a> {
        group: &'a Terms<'a>,
        rows: usize,
        sizes: &'a mut KronManySizes,
    }
    impl Job for Sizes<'_> {
        fn on<B: Groups>(self, backend: &B) -> Result<()> {
            // SAFETY: the promise of `sizes`' caller.
            let terms = unsafe { on::<B>(self.group) };
            let group = Group::new(&terms)?;
            let len = |pass| backend.group_len(&group, pass, self.rows);
            let (forward, backward) = (len(Pass::Forward), len(Pass::Backward { dx: true }));
            *self.sizes = KronManySizes { t: t_len(self.group, self.rows)?, forward, backward };
            Ok(())
        }
    }
    dispatch(device, Sizes { group, rows, sizes })
}

/// A call over a group.
pub(crate) trait GroupCall: Copy {
    fn dtype(&self) -> u32;
    /// # Safety
    /// The pointers of the struct and of the terms hold the elements that they describe, of type E, in the
    /// backend's memory.
    unsafe fn run<B: Groups, E: Element>(&self, backend: &B, group: &Terms) -> Result<()>;
}

/// Runs a call with the type that it names, on the backend that it names.
///
/// # Safety
/// The pointers of the struct and of the terms hold the elements that they describe.
pub(crate) unsafe fn run<C: GroupCall>(device: Option<KronDevice>, group: &Terms, call: C) -> Result<()> {
    struct Run<'a, C> {
        group: &'a Terms<'a>,
        call: C,
    }
    impl<C: GroupCall> Job for Run<'_, C> {
        fn on<B: Groups>(self, backend: &B) -> Result<()> {
            // SAFETY: the promise of `run`'s caller; the arm is the struct's dtype.
            unsafe { with_dtype!(self.call.dtype(), E => self.call.run::<B, E>(backend, self.group)) }
        }
    }
    if device.is_none() {
        fork::prepare_host()?;
    }
    dispatch(device, Run { group, call })
}

impl GroupCall for KronForwardGroup {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: Groups, E: Element>(&self, backend: &B, group: &Terms) -> Result<()> {
        let n = self.rows;
        check_outputs(group, self.outputs)?;
        let x = matrix("x", self.x.cast::<E>(), n, group.d_in(), self.x_stride)?;
        let t_len = t_len(group, n)?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let outputs = checked("ys", self.ys, self.outputs)?;
        let mut ys = Vec::with_capacity(self.outputs);
        for i in 0..self.outputs {
            // SAFETY: the caller promises a struct for each output; the pointer is aligned and not null.
            let output = unsafe { *outputs.add(i) };
            let y = matrix(
                "y",
                output.y.cast::<E>().cast_const(),
                n,
                group.d_out(i).unwrap_or(0),
                output.y_stride,
            )?;
            ys.push((y, accum(output.accumulate)?));
        }
        let mut written: Vec<Span> = ys.iter().map(|(y, _)| Span::rows("y", y)).collect();
        written.push(Span::floats("t", t, t_len));
        written.push(Span::floats("workspace", workspace, self.workspace_len));
        let mut read = vec![Span::rows("x", &x)];
        read.extend(thetas(group));
        overlap::check(&written, &read)?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let ys = ys.into_iter().map(|(y, accum)| (unsafe { B::rows_mut(y.written()) }, accum)).collect();
        // SAFETY: as above.
        let (terms, call) = unsafe {
            (
                on::<B>(group),
                GroupForward {
                    x: B::rows(x),
                    ys,
                    t: B::floats_mut(t.cast_mut(), t_len),
                    workspace: B::floats_mut(workspace.cast_mut(), self.workspace_len),
                },
            )
        };
        backend.group_forward(&Group::new(&terms)?, call)
    }
}

impl GroupCall for KronBackwardGroup {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: Groups, E: Element>(&self, backend: &B, group: &Terms) -> Result<()> {
        let n = self.rows;
        check_outputs(group, self.outputs)?;
        let x = matrix("x", self.x.cast::<E>(), n, group.d_in(), self.x_stride)?;
        let dx = match self.dx.is_null() {
            true => None,
            false => Some(matrix("dx", self.dx.cast::<E>().cast_const(), n, group.d_in(), self.dx_stride)?),
        };
        let t_len = t_len(group, n)?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let accum = accum(self.accumulate)?;
        let (outputs, pointers) =
            (checked("dys", self.dys, self.outputs)?, checked("grads", self.grads, group.terms().len())?);
        let mut dys = Vec::with_capacity(self.outputs);
        for i in 0..self.outputs {
            // SAFETY: the caller promises a struct for each output; the pointer is aligned and not null.
            let output = unsafe { *outputs.add(i) };
            dys.push(matrix("dy", output.dy.cast::<E>(), n, group.d_out(i).unwrap_or(0), output.dy_stride)?);
        }
        let mut grads = Vec::with_capacity(group.terms().len());
        for (i, shape) in group.shapes().enumerate() {
            // SAFETY: the caller promises a pointer for each term; `grads` is aligned and not null.
            let pointer = unsafe { *pointers.add(i) };
            grads.push((floats("grad", pointer, shape.params())?, shape.params()));
        }
        let mut written: Vec<Span> = dx.iter().map(|dx| Span::rows("dx", dx)).collect();
        written.push(Span::floats("workspace", workspace, self.workspace_len));
        written.extend(grads.iter().map(|&(grad, len)| Span::floats("grad", grad, len)));
        let mut read = vec![Span::rows("x", &x), Span::floats("t", t, t_len)];
        read.extend(dys.iter().map(|dy| Span::rows("dy", dy)));
        read.extend(thetas(group));
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
                on::<B>(group),
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
        backend.group_backward(&Group::new(&terms)?, call)
    }
}
