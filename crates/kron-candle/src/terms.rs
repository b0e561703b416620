//! Several adapters on one x in one call of kron-core, on the CPU.

use candle_core::{CpuStorage, Error, Result};
use kron_core::{Accum, AdapterGroup, BackwardGroup, Cpu, ForwardGroup, GroupTerm, Pass};

use crate::device_ops::{Activation, Operand, Term};
use crate::views::{elements, elements_mut, view, view_mut};

/// Adds the outputs of the terms to each y, n × its d_out; returns T. θ of the terms lie one after the other.
pub(crate) fn forward<E: Activation>(
    terms: &[Term],
    theta: &[f32],
    x: Operand<CpuStorage>,
    ys: &mut [&mut CpuStorage],
) -> Result<Vec<f32>> {
    let terms = group_terms(terms, theta);
    let group = AdapterGroup::new(&terms).map_err(Error::wrap)?;
    let (cpu, d_in) = (Cpu::new(), group.d_in());
    let rows = x.1.shape().elem_count() / d_in;
    let mut t = vec![0.0; group.t_len(rows)];
    let mut workspace = vec![0.0; cpu.group_workspace_len(&group, Pass::Forward, rows)];
    let ys = ys.iter_mut().enumerate().map(|(output, y)| {
        Ok((view_mut(rows, group.d_out(output).unwrap_or(0), elements_mut::<E>(y)?)?, Accum::Add))
    });
    let call = ForwardGroup {
        x: view(rows, d_in, elements::<E>(x)?)?,
        ys: &mut ys.collect::<Result<Vec<_>>>()?,
        t: &mut t,
        workspace: &mut workspace,
    };
    cpu.forward_group(&group, call).map_err(Error::wrap)?;
    Ok(t)
}

/// State that a forward pass leaves for its backward pass.
pub(crate) struct Kept<'a> {
    /// θ of the terms, one after the other.
    pub theta: &'a [f32],
    pub x: Operand<'a, CpuStorage>,
    pub t: &'a [f32],
}

/// Returns dθ of the terms, one after the other, for the gradients of each y; adds the terms' dX to `dx`.
pub(crate) fn backward<E: Activation>(
    terms: &[Term],
    Kept { theta, x, t }: Kept,
    dys: &[Operand<CpuStorage>],
    dx: Option<&mut CpuStorage>,
) -> Result<Vec<f32>> {
    let mut grad = vec![0.0; terms.iter().map(|term| term.op.shape.params()).sum()];
    let mut rest = grad.as_mut_slice();
    let part = |term: &Term| rest.split_off_mut(..term.op.shape.params()).unwrap_or_default();
    let mut grads: Vec<&mut [f32]> = terms.iter().map(part).collect();
    let terms = group_terms(terms, theta);
    let group = AdapterGroup::new(&terms).map_err(Error::wrap)?;
    let (cpu, d_in) = (Cpu::new(), group.d_in());
    let rows = x.1.shape().elem_count() / d_in;
    let pass = Pass::Backward { dx: dx.is_some() };
    let mut workspace = vec![0.0; cpu.group_workspace_len(&group, pass, rows)];
    let dx = match dx {
        Some(dx) => Some((view_mut(rows, d_in, elements_mut::<E>(dx)?)?, Accum::Add)),
        None => None,
    };
    let dys = dys
        .iter()
        .enumerate()
        .map(|(output, dy)| view(rows, group.d_out(output).unwrap_or(0), elements::<E>(*dy)?));
    let call = BackwardGroup {
        x: view(rows, d_in, elements::<E>(x)?)?,
        t,
        dys: &dys.collect::<Result<Vec<_>>>()?,
        dx,
        grads: &mut grads,
        workspace: &mut workspace,
    };
    cpu.backward_group(&group, call).map_err(Error::wrap)?;
    Ok(grad)
}

/// Cuts the buffer of all θ into terms; a short one is refused with the group.
fn group_terms<'a>(terms: &[Term], mut theta: &'a [f32]) -> Vec<GroupTerm<&'a [f32]>> {
    let term = |&Term { op, key, output }: &Term| {
        let theta = theta.split_off(..op.shape.params()).unwrap_or_default();
        GroupTerm { op, theta, output, dropout: key }
    };
    terms.iter().map(term).collect()
}
