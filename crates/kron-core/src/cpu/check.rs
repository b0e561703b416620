//! Checks every buffer of a call against its shape, before anything is written.

use ndarray::{ArrayBase, Ix2, RawData};

use super::device::Cpu;
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
