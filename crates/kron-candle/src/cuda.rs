//! [`Memory`] on a CUDA device: from candle's storage to kron-core's device
//! slices and back. The one file of this crate with unsafe code.
//!
//! All memory is candle's and every kernel goes to candle's stream, so that
//! its allocator and its events order our work as they order its own: what an
//! op frees is not reused before the kernels that were queued with it have run.
#![allow(unsafe_code)]

use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::op::Add;
use candle_core::{Error, Layout, Result, Storage, bail};
use kron_core::{Accum, Backend, DropoutKey, KronOp, Pass};
use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, Gpu, Rows, RowsMut, StreamHandle};

use crate::memory::{Backward, Forward, Memory, Number, Operand, range};

impl Memory for CudaStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        }
    }

    fn into_storage(self) -> Storage {
        Storage::Cuda(self)
    }

    fn product((x, x_layout): Operand<Self>, (m, m_layout): Operand<Self>, rows: usize) -> Result<Self> {
        let (inner, cols) = m_layout.shape().dims2()?;
        let x_layout = Layout::contiguous_with_offset((rows, inner), x_layout.start_offset());
        x.matmul(m, (1, rows, cols, inner), &x_layout, m_layout)
    }

    /// candle adds into new memory, so that a bias costs what it costs its own linear layer.
    fn add_bias<E: Number>(y: &mut Self, (bias, layout): Operand<Self>) -> Result<()> {
        let cols = layout.shape().dims1()?;
        let rows = y.as_cuda_slice::<E>()?.len() / cols.max(1);
        let bias_layout = layout.broadcast_as((rows, cols))?;
        *y = y.binary_impl::<Add>(bias, &Layout::contiguous((rows, cols)), &bias_layout)?;
        Ok(())
    }

    fn forward<E: Number>(
        op: &KronOp,
        Forward { theta, x }: Forward<Self>,
        y: &mut Self,
        key: Option<DropoutKey>,
    ) -> Result<Self> {
        let device = y.device.clone();
        let stream = device.cuda_stream();
        let (cuda, y) = (backend(&stream)?, y.as_cuda_slice_mut::<E>()?);
        let (d_in, d_out) = (op.shape.d_in(), op.shape.d_out());
        let rows = y.len() / d_out;
        let mut t = floats(&device, op.t_len(rows))?;
        let mut workspace = floats(&device, cuda.workspace_len(op, Pass::Forward, rows))?;
        {
            let ((theta, _theta), (x, _x)) = (read(theta, &stream)?, read::<E>(x, &stream)?);
            let ((y, _y), (t, _t)) = (write(y, &stream), write(&mut t, &stream));
            let (workspace, _workspace) = write(&mut workspace, &stream);
            let call = kron_core::Forward {
                theta,
                x: Rows { data: x, rows, stride: d_in },
                y: RowsMut { data: y, rows, stride: d_out },
                accum: Accum::Add,
                t,
                workspace,
                dropout: key,
            };
            cuda.forward(op, call).map_err(Error::wrap)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(t, device))
    }

    fn backward<E: Number>(
        op: &KronOp,
        Backward { theta, x, t, dy }: Backward<Self>,
        dx: Option<&mut Self>,
        key: Option<DropoutKey>,
    ) -> Result<Self> {
        let device = dy.0.device.clone();
        let stream = device.cuda_stream();
        let cuda = backend(&stream)?;
        let (d_in, d_out) = (op.shape.d_in(), op.shape.d_out());
        let rows = dy.1.shape().elem_count() / d_out;
        let dx = dx.map(|dx| dx.as_cuda_slice_mut::<E>()).transpose()?;
        let mut grad = device.alloc_zeros::<f32>(op.shape.params())?;
        let mut workspace = floats(&device, cuda.workspace_len(op, Pass::Backward { dx: true }, rows))?;
        {
            let ((theta, _theta), (t, _t)) = (read(theta, &stream)?, read(t, &stream)?);
            let ((x, _x), (dy, _dy)) = (read::<E>(x, &stream)?, read::<E>(dy, &stream)?);
            let (dx, _dx) = dx.map(|dx| write(dx, &stream)).unzip();
            let ((grad, _grad), (workspace, _workspace)) =
                (write(&mut grad, &stream), write(&mut workspace, &stream));
            let call = kron_core::Backward {
                theta,
                x: Rows { data: x, rows, stride: d_in },
                t,
                dy: Rows { data: dy, rows, stride: d_out },
                dx: dx.map(|dx| (RowsMut { data: dx, rows, stride: d_in }, Accum::Add)),
                grad,
                workspace,
                dropout: key,
            };
            cuda.backward(op, call).map_err(Error::wrap)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(grad, device))
    }

    fn merge<E: Number>(op: &KronOp, theta: Operand<Self>, w: &mut Self) -> Result<()> {
        let device = w.device.clone();
        let stream = device.cuda_stream();
        let cuda = backend(&stream)?;
        let (rows, stride) = (op.shape.d_out(), op.shape.d_in());
        let mut workspace = floats(&device, cuda.workspace_len(op, Pass::Merge, rows))?;
        let (theta, _theta) = read(theta, &stream)?;
        let (w, _w) = write(w.as_cuda_slice_mut::<E>()?, &stream);
        let (workspace, _workspace) = write(&mut workspace, &stream);
        let w = RowsMut { data: w, rows, stride };
        let call = kron_core::Merge { theta, w, first_row: 0, accum: Accum::Add, workspace };
        cuda.merge(op, call).map_err(Error::wrap)
    }
}

/// The kernels of each device that a call has come from: candle's ops have no
/// place to keep them, and loading them takes longer than a step.
static LOADED: Mutex<BTreeMap<usize, Cuda<Gpu>>> = Mutex::new(BTreeMap::new());

/// The kernels, on candle's stream.
fn backend(stream: &CudaStream) -> Result<Cuda<Gpu>> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let cuda = match loaded.entry(stream.context().ordinal()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let cuda = Cuda::new(*entry.key()).map_err(Error::wrap)?;
            entry.insert(cuda)
        }
    };
    // SAFETY: candle's context is the device's primary one, which is also that
    // of `Gpu`; every caller keeps candle's device, which owns the stream, over its call.
    let stream = unsafe { StreamHandle::from_raw(stream.cu_stream() as u64) };
    Ok(cuda.on(stream))
}

/// Memory that a call writes before it reads it; at least one number, because
/// the driver gives no memory of none.
fn floats(device: &CudaDevice, len: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: any bits are a float32, and the kernels write T and the workspace before they read them.
    unsafe { device.alloc(len.max(1)) }
}

/// A contiguous operand to read, and the guard that tells candle of it when it
/// is dropped, which is when the call has been queued.
fn read<'a, E: CudaDType>(
    (storage, layout): Operand<'a, CudaStorage>,
    stream: &'a CudaStream,
) -> Result<(DeviceSlice<'a, E>, SyncOnDrop<'a>)> {
    let (slice, range) = (storage.as_cuda_slice::<E>()?, range(layout)?);
    let (start, len) = (range.start, range.len());
    let Some(view) = slice.try_slice(range) else {
        bail!("an operand is {len} numbers from number {start} on, but its storage has {}", slice.len());
    };
    let (pointer, guard) = view.view_ptr(stream);
    // SAFETY: the view is `len` numbers of E of this device, which `on` has
    // compared with x's; candle frees and overwrites them in the order of the
    // stream, or behind the guard's event.
    let slice = unsafe { DeviceSlice::from_raw(pointer, len) };
    Ok((slice, guard))
}

/// The same for memory to write, all of it.
fn write<'a, E>(
    slice: &'a mut CudaSlice<E>,
    stream: &'a CudaStream,
) -> (DeviceSliceMut<'a, E>, SyncOnDrop<'a>) {
    let len = slice.len();
    let (pointer, guard) = slice.device_ptr_mut(stream);
    // SAFETY: as in `read`, and the borrow is exclusive: a storage that an op
    // has made belongs to no tensor yet.
    (unsafe { DeviceSliceMut::from_raw(pointer, len) }, guard)
}
