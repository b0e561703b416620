//! Calls over a group: several adapters on one X, on the host.

use kron_core::{AdapterGroup, BackwardGroup, Cpu, Element, ForwardGroup, GroupTerm, Pass, Result};

use crate::call::{accum, checked, extent, floats, key, matrix};
use crate::host::HostCall;
use crate::overlap::{self, Span};
use crate::pointers::FromPointers;
use crate::refuse;
use crate::types::{KronBackwardGroup, KronForwardGroup, KronManySizes, KronTerm};

/// Parses the terms of a group, and gives the group to `f`.
///
/// # Safety
/// `terms` points to `count` structs, whose pointers hold the elements of theta and the keys.
pub(crate) unsafe fn with_group<T>(
    terms: *const KronTerm,
    count: usize,
    f: impl FnOnce(&AdapterGroup<'_>) -> Result<T>,
) -> Result<T> {
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
        // SAFETY: the pointer was checked for null and alignment, and the caller promises its contents.
        let theta = unsafe { Cpu::floats(theta, op.shape.params()) };
        parsed.push(GroupTerm { op, theta, output, dropout: key(dropout) });
    }
    f(&AdapterGroup::new(&parsed)?)
}

/// Returns the lengths of the buffers of a call over `rows` rows.
pub(crate) fn sizes(cpu: &Cpu, group: &AdapterGroup<'_>, rows: usize) -> Result<KronManySizes> {
    let len = |pass| cpu.group_workspace_len(group, pass, rows);
    let t = t_len(group, rows)?;
    Ok(KronManySizes { t, forward: len(Pass::Forward), backward: len(Pass::Backward { dx: true }) })
}

fn t_len(group: &AdapterGroup<'_>, rows: usize) -> Result<usize> {
    extent::<f32>("t", rows, group.t_len(1))
}

/// Fails unless the call has as many outputs as the group, none of which is then without a width.
fn check_outputs(group: &AdapterGroup<'_>, outputs: usize) -> Result<()> {
    if outputs == group.outputs() {
        return Ok(());
    }
    Err(refuse("outputs", format!("the value {outputs}"), format!("the group has {}", group.outputs())))
}

fn thetas(group: &AdapterGroup<'_>) -> impl Iterator<Item = Span> {
    group.terms().iter().map(|term| Span::floats("theta", term.theta.as_ptr(), term.theta.len()))
}

impl HostCall for KronForwardGroup {
    type Over<'a> = AdapterGroup<'a>;

    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<E: Element>(&self, cpu: &Cpu, group: &AdapterGroup<'_>) -> Result<()> {
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
            let d_out = group.d_out(i).unwrap_or(0);
            let y = matrix("y", output.y.cast::<E>().cast_const(), n, d_out, output.y_stride)?;
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
        let mut ys: Vec<_> =
            ys.into_iter().map(|(y, accum)| (unsafe { Cpu::rows_mut(y.written()) }, accum)).collect();
        // SAFETY: as above.
        let call = unsafe {
            ForwardGroup {
                x: Cpu::rows(x),
                ys: &mut ys,
                t: Cpu::floats_mut(t.cast_mut(), t_len),
                workspace: Cpu::floats_mut(workspace.cast_mut(), self.workspace_len),
            }
        };
        cpu.forward_group(group, call)
    }
}

impl HostCall for KronBackwardGroup {
    type Over<'a> = AdapterGroup<'a>;

    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<E: Element>(&self, cpu: &Cpu, group: &AdapterGroup<'_>) -> Result<()> {
        let (n, terms) = (self.rows, group.terms());
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
            (checked("dys", self.dys, self.outputs)?, checked("grads", self.grads, terms.len())?);
        let mut dys = Vec::with_capacity(self.outputs);
        for i in 0..self.outputs {
            // SAFETY: the caller promises a struct for each output; the pointer is aligned and not null.
            let output = unsafe { *outputs.add(i) };
            dys.push(matrix("dy", output.dy.cast::<E>(), n, group.d_out(i).unwrap_or(0), output.dy_stride)?);
        }
        let mut grads = Vec::with_capacity(terms.len());
        for (i, term) in terms.iter().enumerate() {
            // SAFETY: the caller promises a pointer for each term; `grads` is aligned and not null.
            let pointer = unsafe { *pointers.add(i) };
            grads.push((floats("grad", pointer, term.theta.len())?, term.theta.len()));
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
        let mut grads: Vec<&mut [f32]> =
            grads.into_iter().map(|(grad, len)| unsafe { Cpu::floats_mut(grad.cast_mut(), len) }).collect();
        // SAFETY: as above.
        let dys: Vec<_> = dys.into_iter().map(|dy| unsafe { Cpu::rows(dy) }).collect();
        // SAFETY: as above.
        let call = unsafe {
            BackwardGroup {
                x: Cpu::rows(x),
                t: Cpu::floats(t, t_len),
                dys: &dys,
                dx: dx.map(|dx| (Cpu::rows_mut(dx.written()), accum)),
                grads: &mut grads,
                workspace: Cpu::floats_mut(workspace.cast_mut(), self.workspace_len),
            }
        };
        cpu.backward_group(group, call)
    }
}
