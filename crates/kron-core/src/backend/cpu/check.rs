//! Every buffer of a call against its shape, before anything is written.

use ndarray::{ArrayBase, Ix2, RawData};

use super::Cpu;
use crate::backend::{Backend, Backward, Forward, Merge, Pass};
use crate::theta::check_len;
use crate::{Element, Error, KronOp, Result};

pub(super) fn forward<E: Element>(cpu: &Cpu, op: &KronOp, call: &Forward<'_, Cpu, E>) -> Result<()> {
    let rows = call.x.nrows();
    check_len("theta", &op.shape, call.theta.len())?;
    matrix("x", &call.x, None, op.shape.d_in(), "d_in")?;
    matrix("y", &call.y, Some(rows), op.shape.d_out(), "d_out")?;
    t_len(op, call.t.len(), rows)?;
    workspace(cpu, op, Pass::Forward, call.workspace.len(), rows)
}

pub(super) fn backward<E: Element>(cpu: &Cpu, op: &KronOp, call: &Backward<'_, Cpu, E>) -> Result<()> {
    let rows = call.x.nrows();
    check_len("theta", &op.shape, call.theta.len())?;
    check_len("grad", &op.shape, call.grad.len())?;
    matrix("x", &call.x, None, op.shape.d_in(), "d_in")?;
    matrix("dy", &call.dy, Some(rows), op.shape.d_out(), "d_out")?;
    if let Some((dx, _)) = &call.dx {
        matrix("dx", dx, Some(rows), op.shape.d_in(), "d_in")?;
    }
    t_len(op, call.t.len(), rows)?;
    workspace(cpu, op, Pass::Backward { dx: true }, call.workspace.len(), rows)
}

pub(super) fn merge<E: Element>(cpu: &Cpu, op: &KronOp, call: &Merge<'_, Cpu, E>) -> Result<()> {
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
    workspace(cpu, op, Pass::Merge, call.workspace.len(), rows)
}

/// n × d, n as x has it or any, each row contiguous.
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

fn workspace(cpu: &Cpu, op: &KronOp, pass: Pass, got: usize, rows: usize) -> Result<()> {
    at_least("workspace", got, cpu.workspace_len(op, pass, rows), || {
        format!("workspace_len says so for {pass:?} over {rows} rows")
    })
}

fn at_least(what: &'static str, got: usize, want: usize, why: impl Fn() -> String) -> Result<()> {
    if got >= want {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{got} numbers"), rule: format!("needs {want}: {}", why()) })
}
