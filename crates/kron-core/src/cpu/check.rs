//! Checks every buffer of a call against its shape, before anything is written.

use ndarray::{ArrayBase, Ix2, RawData};

use super::device::Cpu;
use super::group::{AdapterGroup, BackwardGroup, ForwardGroup};
use super::pool::{AdapterPool, BackwardSegments, ForwardSegments};
use crate::simd::RowOrder;
use crate::theta::check_len;
use crate::{Backward, Element, Error, Forward, KronOp, Merge, Pass, Result};

pub(super) fn forward<E: Element>(
    op: &KronOp,
    call: &Forward<'_, Cpu, E>,
    workspace_len: usize,
) -> Result<()> {
    let rows = call.x.nrows();
    check_len("theta", &op.shape, call.theta.len())?;
    matrix("x", &call.x, None, op.shape.d_in(), "d_in")?;
    matrix("y", &call.y, Some(rows), op.shape.d_out(), "d_out")?;
    t_len(op, call.t.len(), rows)?;
    workspace(Pass::Forward, call.workspace.len(), workspace_len, rows)
}

pub(super) fn backward<E: Element>(
    op: &KronOp,
    call: &Backward<'_, Cpu, E>,
    workspace_len: usize,
) -> Result<()> {
    let rows = call.x.nrows();
    check_len("theta", &op.shape, call.theta.len())?;
    check_len("grad", &op.shape, call.grad.len())?;
    matrix("x", &call.x, None, op.shape.d_in(), "d_in")?;
    matrix("dy", &call.dy, Some(rows), op.shape.d_out(), "d_out")?;
    if let Some((dx, _)) = &call.dx {
        matrix("dx", dx, Some(rows), op.shape.d_in(), "d_in")?;
    }
    t_len(op, call.t.len(), rows)?;
    let pass = Pass::Backward { dx: call.dx.is_some() };
    workspace(pass, call.workspace.len(), workspace_len, rows)
}

pub(super) fn merge<E: Element>(op: &KronOp, call: &Merge<'_, Cpu, E>, workspace_len: usize) -> Result<()> {
    let (rows, d_out) = (call.w.nrows(), op.shape.d_out());
    check_len("theta", &op.shape, call.theta.len())?;
    matrix("w", &call.w, None, op.shape.d_in(), "d_in")?;
    if call.first_row.checked_add(rows).is_none_or(|end| end > d_out) {
        return Err(Error::Buffer {
            what: "w",
            got: format!("{rows} rows from row {}", call.first_row),
            rule: format!("the weight has d_out = {d_out} rows"),
        });
    }
    workspace(Pass::Merge, call.workspace.len(), workspace_len, rows)
}

/// Checks all but the workspace.
pub(super) fn forward_segments<E: Element>(pool: &AdapterPool, call: &ForwardSegments<'_, E>) -> Result<()> {
    let (rows, layer) = (call.x.nrows(), pool.layer());
    matrix("x", &call.x, None, layer.d_in, "d_in")?;
    matrix("y", &call.y, Some(rows), layer.d_out, "d_out")?;
    table(pool, call.table, rows)?;
    pool_t_len(pool, call.t.len(), rows)
}

/// Checks all but the workspace and the gradients' lengths.
pub(super) fn backward_segments<E: Element>(
    pool: &AdapterPool,
    call: &BackwardSegments<'_, '_, E>,
) -> Result<()> {
    let (rows, layer) = (call.x.nrows(), pool.layer());
    matrix("x", &call.x, None, layer.d_in, "d_in")?;
    matrix("dy", &call.dy, Some(rows), layer.d_out, "d_out")?;
    if let Some((dx, _)) = &call.dx {
        matrix("dx", dx, Some(rows), layer.d_in, "d_in")?;
    }
    table(pool, call.table, rows)?;
    pool_t_len(pool, call.t.len(), rows)
}

pub(super) fn forward_group<E: Element>(
    group: &AdapterGroup,
    call: &ForwardGroup<'_, '_, E>,
    workspace_len: usize,
) -> Result<()> {
    let rows = call.x.nrows();
    matrix("x", &call.x, None, group.d_in(), "d_in")?;
    count("ys", call.ys.len(), group.outputs(), "outputs")?;
    for (i, (y, _)) in call.ys.iter().enumerate() {
        matrix("y", y, Some(rows), group.d_out(i).unwrap_or(0), "d_out")?;
    }
    group_t_len(group, call.t.len(), rows)?;
    group_workspace(Pass::Forward, call.workspace.len(), workspace_len, rows)
}

pub(super) fn backward_group<E: Element>(
    group: &AdapterGroup,
    call: &BackwardGroup<'_, '_, E>,
    workspace_len: usize,
) -> Result<()> {
    let rows = call.x.nrows();
    matrix("x", &call.x, None, group.d_in(), "d_in")?;
    count("dys", call.dys.len(), group.outputs(), "outputs")?;
    for (i, dy) in call.dys.iter().enumerate() {
        matrix("dy", dy, Some(rows), group.d_out(i).unwrap_or(0), "d_out")?;
    }
    if let Some((dx, _)) = &call.dx {
        matrix("dx", dx, Some(rows), group.d_in(), "d_in")?;
    }
    count("grads", call.grads.len(), group.terms().len(), "terms")?;
    for (grad, term) in call.grads.iter().zip(group.terms()) {
        check_len("grad", &term.op.shape, grad.len())?;
    }
    group_t_len(group, call.t.len(), rows)?;
    let pass = Pass::Backward { dx: call.dx.is_some() };
    group_workspace(pass, call.workspace.len(), workspace_len, rows)
}

fn count(what: &'static str, got: usize, want: usize, of: &str) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{got} elements"), rule: format!("the group has {want} {of}") })
}

fn group_t_len(group: &AdapterGroup, got: usize, rows: usize) -> Result<()> {
    at_least("t", got, group.t_len(rows), || format!("n × a_in × r of all terms over {rows} rows"))
}

fn group_workspace(pass: Pass, got: usize, want: usize, rows: usize) -> Result<()> {
    at_least("workspace", got, want, || format!("see group_workspace_len for {pass:?} over {rows} rows"))
}

/// Fails unless a table has a number of the pool, or −1, for each row.
fn table(pool: &AdapterPool, table: &[i32], rows: usize) -> Result<()> {
    if table.len() != rows || u32::try_from(rows).is_err() {
        return Err(Error::Buffer {
            what: "table",
            got: format!("{} elements", table.len()),
            rule: format!("it is one per row of x, which has {rows}, and at most {}", u32::MAX),
        });
    }
    let last = pool.adapters().len() as i64 - 1;
    match table.iter().position(|&i| !(-1..=last).contains(&i64::from(i))) {
        None => Ok(()),
        Some(row) => Err(Error::Buffer {
            what: "table",
            got: format!("adapter {} for row {row}", table[row]),
            rule: format!("a row has an adapter from 0 to {last}, or -1 for none"),
        }),
    }
}

fn pool_t_len(pool: &AdapterPool, got: usize, rows: usize) -> Result<()> {
    at_least("t", got, pool.t_len(rows), || {
        format!("n × the largest a_in·r of the pool is {rows} × {}", pool.t_len(1))
    })
}

/// Splits off the part of a workspace in which the rows are sorted.
pub(super) fn sorting<'a>(
    pool: &AdapterPool,
    table: &[i32],
    workspace: &'a mut [f32],
) -> Result<(&'a mut [f32], &'a mut [f32])> {
    let len = RowOrder::scratch_len(pool.adapters().len(), table.len());
    at_least("workspace", workspace.len(), len, || {
        format!("see segments_workspace_len over {} rows", table.len())
    })?;
    Ok(workspace.split_at_mut(len))
}

/// Fails unless there is a gradient for each adapter, which may be empty if no row has the adapter.
pub(super) fn grads(pool: &AdapterPool, order: &RowOrder, grads: &[&mut [f32]]) -> Result<()> {
    if grads.len() != pool.adapters().len() {
        return Err(Error::Buffer {
            what: "grads",
            got: format!("{} gradients", grads.len()),
            rule: format!("the pool has {} adapters", pool.adapters().len()),
        });
    }
    let with_rows = |&(i, grad): &(usize, &&mut [f32])| order.count(i) > 0 || !grad.is_empty();
    let mut grads = grads.iter().enumerate().filter(with_rows);
    grads.try_for_each(|(i, grad)| check_len("grad", &pool.adapters()[i].op.shape, grad.len()))
}

/// Fails unless the part of a workspace behind the sorted rows is large enough.
pub(super) fn segments_scratch(pass: Pass, got: usize, want: usize, rows: usize) -> Result<()> {
    at_least("workspace", got, want, || {
        format!("behind the sorted rows, see segments_workspace_len for {pass:?} over {rows} rows")
    })
}

/// Fails unless `m` has `rows` rows, where given, of `cols` contiguous elements.
fn matrix<S: RawData>(
    what: &'static str,
    m: &ArrayBase<S, Ix2>,
    rows: Option<usize>,
    cols: usize,
    cols_name: &str,
) -> Result<()> {
    if m.dim() != (rows.unwrap_or(m.nrows()), cols) {
        let rows = rows.map_or("every row is of ".into(), |rows| format!("it is {rows} rows (as x has) of "));
        return Err(Error::Buffer {
            what,
            got: format!("{} × {} elements", m.nrows(), m.ncols()),
            rule: format!("{rows}{cols_name} = {cols}"),
        });
    }
    if m.strides()[1] != 1 && cols > 1 && m.nrows() > 0 {
        return Err(Error::Buffer {
            what,
            got: format!("an inner stride of {}", m.strides()[1]),
            rule: "a row is contiguous: its inner stride is 1".into(),
        });
    }
    Ok(())
}

fn t_len(op: &KronOp, got: usize, rows: usize) -> Result<()> {
    at_least("t", got, op.t_len(rows), || {
        format!("n × a_in × r is {rows} × {} × {}", op.shape.a_in(), op.shape.width())
    })
}

fn workspace(pass: Pass, got: usize, want: usize, rows: usize) -> Result<()> {
    at_least("workspace", got, want, || format!("see workspace_len for {pass:?} over {rows} rows"))
}

fn at_least(what: &'static str, got: usize, want: usize, why: impl Fn() -> String) -> Result<()> {
    if got >= want {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{got} elements"), rule: format!("needs {want}: {}", why()) })
}
