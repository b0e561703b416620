//! The calls over several adapters on one X: each adapter is one term of the pass.

use super::device::Cpu;
use super::group::{AdapterGroup, BackwardGroup, ForwardGroup, GroupTerm};
use super::partition::{Partitioned, RowPartition};
use super::{backward, check, forward};
use crate::simd::{Isa, Kernels, Products, RowGrid, RowGridMut};
use crate::{Element, Pass, Result};

/// Returns the float32 elements of scratch that every call over at most `rows` rows can run with.
pub(super) fn workspace_len(isa: Isa, group: &AdapterGroup, pass: Pass, rows: usize) -> usize {
    let bounds = RowPartition::group_bounds(Partitioned::of(pass), group.shapes(), rows);
    bounds.map(|partition| taken(isa, group, pass, partition)).max().unwrap_or(0)
}

/// Elements of the workspace that a call takes.
fn taken(isa: Isa, group: &AdapterGroup, pass: Pass, partition: RowPartition) -> usize {
    let len = |term: &GroupTerm<&[f32]>| match pass {
        Pass::Backward { dx } => backward::layout(isa, &term.op, partition, dx).call.workspace_len(),
        Pass::Forward | Pass::Merge => forward::layout(isa, &term.op, partition).workspace_len(),
    };
    group.terms().iter().map(len).sum()
}

pub(super) fn forward<E: Element>(
    cpu: Cpu,
    group: &AdapterGroup,
    call: ForwardGroup<'_, '_, E>,
) -> Result<()> {
    let rows = call.x.nrows();
    let partition = RowPartition::of_group(Partitioned::Forward, group.shapes(), rows);
    check::forward_group(group, &call, taken(cpu.isa, group, Pass::Forward, partition))?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let ForwardGroup { x, ys, mut t, mut workspace } = call;
    let mut ys = ys.iter_mut();
    let outputs: [_; AdapterGroup::MAX_TERMS] = std::array::from_fn(|_| {
        let (y, accum) = ys.next()?;
        Some((RowGridMut::of_view(y.view_mut(), 1), *accum))
    });
    let terms = std::array::from_fn(|k| {
        let GroupTerm { op, theta, output, dropout } = group.terms().get(k)?;
        let layout = forward::layout(cpu.isa, op, partition);
        let t = t.split_off_mut(..op.t_len(rows))?;
        let workspace = workspace.split_off_mut(..layout.workspace_len())?;
        Some(forward::TermCall { op, theta, output: *output, dropout: *dropout, t, layout, workspace })
    });
    forward::compute(
        cpu.team,
        kernels,
        forward::Rows { first: 0, x: RowGrid::of_view(x, 1), outputs },
        terms,
    );
    Ok(())
}

pub(super) fn backward<E: Element>(
    cpu: Cpu,
    group: &AdapterGroup,
    call: BackwardGroup<'_, '_, E>,
) -> Result<()> {
    let (rows, pass) = (call.x.nrows(), Pass::Backward { dx: call.dx.is_some() });
    let partition = RowPartition::of_group(Partitioned::Backward, group.shapes(), rows);
    check::backward_group(group, &call, taken(cpu.isa, group, pass, partition))?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let BackwardGroup { x, mut t, dys, dx, grads, mut workspace } = call;
    let (with_dx, mut grads) = (dx.is_some(), grads.iter_mut());
    let terms: [_; AdapterGroup::MAX_TERMS] = std::array::from_fn(|k| {
        let GroupTerm { op, theta, output, dropout } = group.terms().get(k)?;
        let layout = backward::layout(cpu.isa, op, partition, with_dx);
        let (t, grad) = (t.split_off(..op.t_len(rows))?, &mut **grads.next()?);
        let workspace = workspace.split_off_mut(..layout.call.workspace_len())?;
        let dy = RowGrid::of_view(dys[*output], 1);
        Some(backward::TermCall { op, theta, dy, dropout: *dropout, t, grad, layout, workspace })
    });
    let dx = dx.map(|(dx, accum)| (RowGridMut::of_view(dx, 1), accum));
    backward::compute(cpu.team, kernels, backward::Rows { first: 0, x: RowGrid::of_view(x, 1), dx }, terms);
    Ok(())
}
