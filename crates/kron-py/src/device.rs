//! The same passes over addresses in a device's memory, queued on a stream; or, for tests, on the emulated device.

use half::{bf16, f16};
use kron_core::{Accum, Backend, Backward, Element, Forward, KronOp, Pass};
#[cfg(feature = "emulate")]
use kron_kernels::Emulated as Device;
#[cfg(not(feature = "emulate"))]
use kron_kernels::Gpu as Device;
use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, Rows as Matrix, RowsMut as MatrixMut, StreamHandle};
use pyo3::prelude::*;

use crate::call::{Rows, Sizes, op, refused, with_dtype};

/// Number of a device, and torch's current stream on it.
type Place = (usize, u64);

/// Returns the kernels on a device, loaded once, on a stream.
fn backend((ordinal, stream): Place) -> PyResult<Cuda<Device>> {
    // SAFETY: torch's stream lives as long as its context, which is the device's primary one.
    Ok(loaded(ordinal)?.on(unsafe { StreamHandle::from_raw(stream) }))
}

#[cfg(not(feature = "emulate"))]
fn loaded(ordinal: usize) -> PyResult<Cuda<Device>> {
    use std::collections::BTreeMap;
    use std::collections::btree_map::Entry;
    use std::sync::{Mutex, PoisonError};
    static LOADED: Mutex<BTreeMap<usize, Cuda<Device>>> = Mutex::new(BTreeMap::new());
    match LOADED.lock().unwrap_or_else(PoisonError::into_inner).entry(ordinal) {
        Entry::Occupied(device) => Ok(device.get().clone()),
        Entry::Vacant(place) => Ok(place.insert(Cuda::new(ordinal).map_err(refused)?).clone()),
    }
}

#[cfg(feature = "emulate")]
fn loaded(_: usize) -> PyResult<Cuda<Device>> {
    Ok(Cuda::with(Device::new()))
}

/// Returns the elements of workspace that a pass needs on the device.
#[pyfunction]
pub fn device_workspace_len(
    sizes: Sizes,
    rows: usize,
    place: Place,
    backward: bool,
    dx: bool,
) -> PyResult<usize> {
    let pass = if backward { Pass::Backward { dx } } else { Pass::Forward };
    Ok(backend(place)?.workspace_len(&op(sizes, 1.0)?, pass, rows))
}

/// Queues the forward pass.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // the struct of a C interface
pub fn device_forward(
    sizes: Sizes,
    scale: f32,
    dtype: u8,
    rows: usize,
    x: Rows,
    y: Rows,
    add: bool,
    theta: u64,
    t: u64,
    workspace: (u64, usize),
    place: Place,
) -> PyResult<()> {
    let (op, device) = (op(sizes, scale)?, backend(place)?);
    let (d_out, d_in) = (op.shape.d_out(), op.shape.d_in());
    with_dtype!(dtype, E => {
        // SAFETY: the package passes addresses of tensors on this device, of this dtype and these sizes, of which y, t
        // and the workspace are new; torch gives their memory to nobody before the stream has run the call.
        let call = unsafe { Forward {
            theta: floats(theta, op.shape.params()),
            x: matrix::<E>(x, rows, d_in),
            y: matrix_mut::<E>(y, rows, d_out),
            accum: accum(add),
            t: floats_mut(t, op.t_len(rows)),
            workspace: floats_mut(workspace.0, workspace.1),
            dropout: None,
        } };
        device.forward(&op, call).map_err(refused)
    })
}

/// Queues the backward pass; the gradient of θ is added to `grad`.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // as above
pub fn device_backward(
    sizes: Sizes,
    scale: f32,
    dtype: u8,
    rows: usize,
    x: Rows,
    dy: Rows,
    dx: Rows,
    add: bool,
    theta: u64,
    t: u64,
    grad: u64,
    workspace: (u64, usize),
    place: Place,
) -> PyResult<()> {
    let (op, device): (KronOp, _) = (op(sizes, scale)?, backend(place)?);
    let (d_out, d_in) = (op.shape.d_out(), op.shape.d_in());
    with_dtype!(dtype, E => {
        // SAFETY: as in `device_forward`; dx, grad and the workspace are new.
        let call = unsafe { Backward {
            theta: floats(theta, op.shape.params()),
            x: matrix::<E>(x, rows, d_in),
            t: floats(t, op.t_len(rows)),
            dy: matrix::<E>(dy, rows, d_out),
            dx: (dx.0 != 0).then(|| (matrix_mut::<E>(dx, rows, d_in), accum(add))),
            grad: floats_mut(grad, op.shape.params()),
            workspace: floats_mut(workspace.0, workspace.1),
            dropout: None,
        } };
        device.backward(&op, call).map_err(refused)
    })
}

fn accum(add: bool) -> Accum {
    if add { Accum::Add } else { Accum::Replace }
}

/// Returns the elements that a matrix reaches over.
fn reach(rows: usize, stride: usize, columns: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1).saturating_mul(stride).saturating_add(columns) }
}

/// # Safety
/// The matrix is in the device's memory until the call has run, and nobody writes it.
unsafe fn matrix<'a, E: Element>((at, stride): Rows, rows: usize, columns: usize) -> Matrix<'a, E> {
    let stride = if rows <= 1 { columns } else { stride };
    // SAFETY: the caller's promise.
    Matrix { data: unsafe { DeviceSlice::from_raw(at as u64, reach(rows, stride, columns)) }, rows, stride }
}

/// # Safety
/// The matrix is in the device's memory until the call has run, and nobody else uses it.
unsafe fn matrix_mut<'a, E: Element>((at, stride): Rows, rows: usize, columns: usize) -> MatrixMut<'a, E> {
    let stride = if rows <= 1 { columns } else { stride };
    // SAFETY: the caller's promise.
    let data = unsafe { DeviceSliceMut::from_raw(at as u64, reach(rows, stride, columns)) };
    MatrixMut { data, rows, stride }
}

/// # Safety
/// As [`matrix`].
unsafe fn floats<'a>(at: u64, len: usize) -> DeviceSlice<'a, f32> {
    // SAFETY: the caller's promise.
    unsafe { DeviceSlice::from_raw(at, len) }
}

/// # Safety
/// As [`matrix_mut`].
unsafe fn floats_mut<'a>(at: u64, len: usize) -> DeviceSliceMut<'a, f32> {
    // SAFETY: the caller's promise.
    unsafe { DeviceSliceMut::from_raw(at, len) }
}
