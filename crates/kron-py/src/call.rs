//! Forward and backward passes over addresses.

use std::cell::Cell;

use half::{bf16, f16};
use kron_core::{
    Accum, Backend, Backward, Cpu, Element, Forward, Inner, KronOp, KronShape, LayerDims, Outer, Pass, Scale,
    Split,
};
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::team;

thread_local! {
    /// Workspace of this thread's calls.
    static WORKSPACE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Address of the first element of a matrix, and elements from row to row.
pub type Rows = (usize, usize);

/// Sizes of the factors: a_out, a_in, b_out, c_in, and the rank, 0 for a full inner factor.
pub type Sizes = (usize, usize, usize, usize, usize);

/// Number of a dtype: 0 for float32, 1 for float16, 2 for bfloat16.
macro_rules! with_dtype {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            0 => {
                type $E = f32;
                $body
            }
            1 => {
                type $E = f16;
                $body
            }
            2 => {
                type $E = bf16;
                $body
            }
            other => Err($crate::call::refused(format!("dtype {other} is none of 0, 1 and 2"))),
        }
    };
}

#[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(unused_imports))]
pub(crate) use with_dtype;

/// Adds s·x·(A ⊗ B·C)ᵀ to y, or writes it, and writes T.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // the struct of a C interface
pub fn forward(
    py: Python<'_>,
    sizes: Sizes,
    scale: f32,
    dtype: u8,
    rows: usize,
    x: Rows,
    y: Rows,
    add: bool,
    theta: usize,
    t: usize,
    threads: u32,
) -> PyResult<()> {
    let op = op(sizes, scale)?;
    py.detach(|| {
        with_dtype!(dtype, E => {
            let (d_out, d_in) = (op.shape.d_out(), op.shape.d_in());
            // SAFETY: the package passes addresses of tensors that live through the call, of this dtype and these
            // sizes, of which y and t are new.
            let (x, y, theta, t) = unsafe { (
                matrix::<E>(x, rows, d_in)?,
                matrix_mut::<E>(y, rows, d_out)?,
                floats(theta, op.shape.params())?,
                floats_mut(t, op.t_len(rows))?,
            ) };
            with_workspace(&op, Pass::Forward, rows, threads, |cpu, workspace| {
                let accum = if add { Accum::Add } else { Accum::Replace };
                cpu.forward(&op, Forward { theta, x, y, accum, t, workspace, dropout: None })
            })
        })
    })
}

/// Adds dX to `dx`, or writes it, unless its address is 0, and adds the gradient of θ to `grad`.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // as above
pub fn backward(
    py: Python<'_>,
    sizes: Sizes,
    scale: f32,
    dtype: u8,
    rows: usize,
    x: Rows,
    dy: Rows,
    dx: Rows,
    add: bool,
    theta: usize,
    t: usize,
    grad: usize,
    threads: u32,
) -> PyResult<()> {
    let op = op(sizes, scale)?;
    py.detach(|| {
        with_dtype!(dtype, E => {
            let (d_out, d_in) = (op.shape.d_out(), op.shape.d_in());
            let wants_dx = dx.0 != 0;
            // SAFETY: as in `forward`; dx and grad are the caller's alone.
            let (x, dy, dx, theta, t, grad) = unsafe { (
                matrix::<E>(x, rows, d_in)?,
                matrix::<E>(dy, rows, d_out)?,
                if wants_dx { Some(matrix_mut::<E>(dx, rows, d_in)?) } else { None },
                floats(theta, op.shape.params())?,
                floats(t, op.t_len(rows))?,
                floats_mut(grad, op.shape.params())?,
            ) };
            with_workspace(&op, Pass::Backward { dx: wants_dx }, rows, threads, |cpu, workspace| {
                let dx = dx.map(|dx| (dx, if add { Accum::Add } else { Accum::Replace }));
                cpu.backward(&op, Backward { theta, x, t, dy, dx, grad, workspace, dropout: None })
            })
        })
    })
}

pub fn refused(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

pub fn op((a_out, a_in, b_out, c_in, rank): Sizes, scale: f32) -> PyResult<KronOp> {
    let overflow = || refused("the sizes of a layer exceed 64 bits");
    let layer = LayerDims {
        d_out: a_out.checked_mul(b_out).ok_or_else(overflow)?,
        d_in: a_in.checked_mul(c_in).ok_or_else(overflow)?,
    };
    let inner = if rank == 0 { Inner::Full } else { Inner::LowRank(rank) };
    let shape = KronShape::new(layer, Split { a_out, a_in }, Outer::Trained, inner).map_err(refused)?;
    Ok(KronOp::new(shape, Scale::new(scale).map_err(refused)?))
}

/// Calls `f` with the team and with this thread's workspace, which keeps its memory.
fn with_workspace(
    op: &KronOp,
    pass: Pass,
    rows: usize,
    threads: u32,
    f: impl FnOnce(Cpu, &mut [f32]) -> kron_core::Result<()>,
) -> PyResult<()> {
    let cpu = Cpu::new().on(team::of(threads));
    let len = cpu.workspace_len(op, pass, rows);
    let mut workspace = WORKSPACE.take();
    if workspace.len() < len {
        workspace = vec![0.0; len];
    }
    let done = f(cpu, &mut workspace[..len]);
    WORKSPACE.set(workspace);
    done.map_err(refused)
}

/// # Safety
/// The matrix exists through `'a`, and nobody writes it.
unsafe fn matrix<'a, E: Element>(at: Rows, rows: usize, columns: usize) -> PyResult<ArrayView2<'a, E>> {
    let shape = (rows, columns).strides((checked::<E>(at, rows, columns)?, 1));
    // SAFETY: the caller's promise; rows do not overlap.
    Ok(unsafe { ArrayView2::from_shape_ptr(shape, pointer(at.0)) })
}

/// # Safety
/// The matrix exists through `'a`, and nobody else uses it.
unsafe fn matrix_mut<'a, E: Element>(
    at: Rows,
    rows: usize,
    columns: usize,
) -> PyResult<ArrayViewMut2<'a, E>> {
    let shape = (rows, columns).strides((checked::<E>(at, rows, columns)?, 1));
    // SAFETY: the caller's promise; rows do not overlap.
    Ok(unsafe { ArrayViewMut2::from_shape_ptr(shape, pointer(at.0)) })
}

/// Returns the stride of a matrix that is not null, is aligned, and whose rows do not overlap.
fn checked<E>((at, stride): Rows, rows: usize, columns: usize) -> PyResult<usize> {
    match rows {
        0 => Ok(columns),
        _ if at == 0 || !at.is_multiple_of(align_of::<E>()) => {
            Err(refused(format!("a matrix of {rows} rows begins at address {at:#x}")))
        }
        1 => Ok(columns),
        _ if stride < columns => Err(refused(format!("rows of {columns} elements are {stride} apart"))),
        _ => Ok(stride),
    }
}

/// Returns an address as a pointer; an empty matrix has none.
fn pointer<E>(at: usize) -> *mut E {
    if at == 0 { std::ptr::dangling_mut() } else { std::ptr::with_exposed_provenance_mut(at) }
}

/// # Safety
/// As many numbers exist through `'a`, and nobody writes them.
unsafe fn floats<'a>(at: usize, len: usize) -> PyResult<&'a [f32]> {
    checked::<f32>((at, len), len.min(1), len)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer(at), len) })
}

/// # Safety
/// As many numbers exist through `'a`, and nobody else uses them.
unsafe fn floats_mut<'a>(at: usize, len: usize) -> PyResult<&'a mut [f32]> {
    checked::<f32>((at, len), len.min(1), len)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer(at), len) })
}
