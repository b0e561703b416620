//! Forward and backward passes over addresses, through kron-capi, which checks what can be checked of them.

use std::ffi::CStr;
use std::os::raw::c_int;

use kron_capi::{
    KRON_INVALID, KRON_OK, KronBackward, KronDevice, KronForward, KronOp, KronSizes, kron_backward,
    kron_forward, kron_last_error, kron_sizes,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::team;

/// Sizes of the factors: a_out, a_in, b_out, c_in, and the rank, 0 for a full inner factor.
type Sizes = (usize, usize, usize, usize, usize);
/// Address of the first element of a matrix, and elements from row to row.
type Rows = (usize, usize);
/// Address of the first number of a buffer, and numbers in it.
type Buffer = (usize, usize);

/// Place of a call: the host with so many threads, or a device with a stream of it.
#[derive(Clone, Copy, FromPyObject)]
pub enum Place {
    #[pyo3(transparent)]
    Threads(u32),
    #[pyo3(transparent)]
    Device((i32, usize)),
}

impl Place {
    /// Calls `f` with the device, null for the host; the calling thread's threads are set.
    fn call(self, py: Python<'_>, f: impl FnOnce(*const KronDevice) -> c_int + Send) -> PyResult<()> {
        let message = py.detach(|| {
            let device = match self {
                Self::Threads(threads) => {
                    team::set(threads);
                    None
                }
                Self::Device((device, stream)) => {
                    Some(KronDevice { device, stream: std::ptr::with_exposed_provenance_mut(stream) })
                }
            };
            match f(device.as_ref().map_or(std::ptr::null(), std::ptr::from_ref)) {
                KRON_OK => None,
                // SAFETY: the text ends with a zero, and lives until this thread's next call.
                status => Some((
                    status,
                    unsafe { CStr::from_ptr(kron_last_error()) }.to_string_lossy().into_owned(),
                )),
            }
        });
        match message {
            None => Ok(()),
            Some((KRON_INVALID, text)) => Err(PyValueError::new_err(text)),
            Some((_, text)) => Err(PyRuntimeError::new_err(text)),
        }
    }
}

fn op((a_out, a_in, b_out, c_in, rank): Sizes, scale: f32) -> PyResult<KronOp> {
    let overflow = || PyValueError::new_err("the sizes of a layer exceed 64 bits");
    let d_out = a_out.checked_mul(b_out).ok_or_else(overflow)?;
    let d_in = a_in.checked_mul(c_in).ok_or_else(overflow)?;
    Ok(KronOp { d_out, d_in, a_out, a_in, rank, scale, dropout: 0.0 })
}

/// Returns the address as a pointer.
const fn at<T>(address: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(address)
}

/// Returns the lengths of the workspaces of a forward and of a backward pass.
#[pyfunction]
pub fn workspace_lens(py: Python<'_>, sizes: Sizes, rows: usize, place: Place) -> PyResult<(usize, usize)> {
    let (op, mut lens) = (op(sizes, 1.0)?, KronSizes { theta: 0, t: 0, forward: 0, backward: 0, merge: 0 });
    let to = &mut lens;
    // SAFETY: the structs live through the call.
    place.call(py, |device| unsafe { kron_sizes(device, &op, rows, to) })?;
    Ok((lens.forward, lens.backward))
}

/// Adds s·x·(A ⊗ B·C)ᵀ to y, or writes it, and writes T.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // the struct of the C interface
pub fn forward(
    py: Python<'_>,
    sizes: Sizes,
    scale: f32,
    dtype: u32,
    rows: usize,
    x: Rows,
    y: Rows,
    add: bool,
    theta: usize,
    t: usize,
    workspace: Buffer,
    place: Place,
) -> PyResult<()> {
    let op = op(sizes, scale)?;
    place.call(py, |device| {
        let call = KronForward {
            dtype,
            accumulate: add.into(),
            rows,
            x: at(x.0),
            x_stride: x.1,
            y: at(y.0),
            y_stride: y.1,
            theta: at(theta),
            t: at(t),
            workspace: at(workspace.0),
            workspace_len: workspace.1,
            key: std::ptr::null(),
        };
        // SAFETY: the package passes addresses of tensors of this place, dtype and size, which live through the call, and
        // on a device until its stream has run it; y, t and the workspace are nobody else's.
        unsafe { kron_forward(device, &op, &call) }
    })
}

/// Adds dX to `dx`, or writes it, unless its address is 0, and adds the gradient of θ to `grad`.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // as above
pub fn backward(
    py: Python<'_>,
    sizes: Sizes,
    scale: f32,
    dtype: u32,
    rows: usize,
    x: Rows,
    dy: Rows,
    dx: Rows,
    add: bool,
    theta: usize,
    t: usize,
    grad: usize,
    workspace: Buffer,
    place: Place,
) -> PyResult<()> {
    let op = op(sizes, scale)?;
    place.call(py, |device| {
        let call = KronBackward {
            dtype,
            accumulate: add.into(),
            rows,
            x: at(x.0),
            x_stride: x.1,
            dy: at(dy.0),
            dy_stride: dy.1,
            dx: at(dx.0),
            dx_stride: dx.1,
            theta: at(theta),
            t: at(t),
            grad: at(grad),
            workspace: at(workspace.0),
            workspace_len: workspace.1,
            key: std::ptr::null(),
        };
        // SAFETY: as in `forward`; dx, grad and the workspace are nobody else's.
        unsafe { kron_backward(device, &op, &call) }
    })
}
