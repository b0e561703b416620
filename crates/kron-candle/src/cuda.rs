//! [`DeviceOps`] on a CUDA device: candle's storage as device slices of kron-kernels.
//!
//! This is the crate's only file with unsafe code.
//!
//! All memory comes from candle, and every kernel is launched on candle's stream. candle's allocator and events
//! therefore order these kernels like its own: memory freed by an op is not reused before the op's kernels have run.
#![allow(unsafe_code)]

use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::op::Add;
use candle_core::{Error, Layout, Result, Storage, bail};
use kron_core::{Accum, Backend, KronOp, Pass};
use kron_kernels::{
    BackwardGroup, Cuda, DeviceGroup, DeviceSlice, DeviceSliceMut, DeviceTerm, ForwardGroup, Gpu, Rows,
    RowsMut, StreamHandle,
};

use crate::base::FrozenLinear;
use crate::device_ops::{Activation, BackwardInputs, DeviceOps, ForwardInputs, Operand, Term, range};

impl DeviceOps for CudaStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        }
    }

    fn into_storage(self) -> Storage {
        Storage::Cuda(self)
    }

    fn len_of<E: Activation>(&self) -> Result<usize> {
        Ok(self.as_cuda_slice::<E>()?.len())
    }

    fn product((x, x_layout): Operand<Self>, (m, m_layout): Operand<Self>, rows: usize) -> Result<Self> {
        let (inner, cols) = m_layout.shape().dims2()?;
        let x_layout = Layout::contiguous_with_offset((rows, inner), x_layout.start_offset());
        x.matmul(m, (1, rows, cols, inner), &x_layout, m_layout)
    }

    /// Adds into new memory, as candle's own linear layer does.
    fn add_bias<E: Activation>(y: &mut Self, (bias, layout): Operand<Self>) -> Result<()> {
        let cols = layout.shape().dims1()?;
        let rows = y.as_cuda_slice::<E>()?.len() / cols.max(1);
        let bias_layout = layout.broadcast_as((rows, cols))?;
        *y = y.binary_impl::<Add>(bias, &Layout::contiguous((rows, cols)), &bias_layout)?;
        Ok(())
    }

    fn base_forward(base: &dyn FrozenLinear, (x, layout): Operand<Self>) -> Result<Self> {
        base.cuda_forward(x, layout)
    }

    fn base_backward(base: &dyn FrozenLinear, (dy, layout): Operand<Self>) -> Result<Self> {
        base.cuda_backward(dy, layout)
    }

    fn forward<E: Activation>(
        terms: &[Term],
        ForwardInputs { theta, x }: ForwardInputs<Self>,
        y: &mut Self,
    ) -> Result<Self> {
        let device = y.device.clone();
        let stream = device.cuda_stream();
        let (cuda, (theta, _theta)) = (backend(&stream)?, read(theta, &stream)?);
        let terms = device_terms(terms, theta).map_err(Error::wrap)?;
        let group = DeviceGroup::new(&terms).map_err(Error::wrap)?;
        let (d_in, d_out) = (group.d_in(), group.d_out(0).unwrap_or(0));
        let rows = x.1.shape().elem_count() / d_in;
        let mut t = floats(&device, group.t_len(rows))?;
        let mut workspace = floats(&device, cuda.group_workspace_len(&group, Pass::Forward, rows))?;
        {
            let ((x, _x), (y, _y)) = (read::<E>(x, &stream)?, write(y.as_cuda_slice_mut::<E>()?, &stream));
            let ((t, _t), (workspace, _workspace)) = (write(&mut t, &stream), write(&mut workspace, &stream));
            let call = ForwardGroup {
                x: Rows { data: x, rows, stride: d_in },
                ys: &mut [(RowsMut { data: y, rows, stride: d_out }, Accum::Add)],
                t,
                workspace,
            };
            cuda.forward_group(&group, call).map_err(Error::wrap)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(t, device))
    }

    fn backward<E: Activation>(
        terms: &[Term],
        BackwardInputs { theta, x, t, dy }: BackwardInputs<Self>,
        dx: Option<&mut Self>,
    ) -> Result<Self> {
        let device = dy.0.device.clone();
        let stream = device.cuda_stream();
        let (cuda, (theta, _theta)) = (backend(&stream)?, read(theta, &stream)?);
        let terms = device_terms(terms, theta).map_err(Error::wrap)?;
        let group = DeviceGroup::new(&terms).map_err(Error::wrap)?;
        let (d_in, d_out) = (group.d_in(), group.d_out(0).unwrap_or(0));
        let rows = x.1.shape().elem_count() / d_in;
        let dx = dx.map(|dx| dx.as_cuda_slice_mut::<E>()).transpose()?;
        let params: Vec<usize> = terms.iter().map(|term| term.op.shape.params()).collect();
        let mut grad = device.alloc_zeros::<f32>(params.iter().sum())?;
        let pass = Pass::Backward { dx: dx.is_some() };
        let mut workspace = floats(&device, cuda.group_workspace_len(&group, pass, rows))?;
        {
            let ((x, _x), (dy, _dy)) = (read::<E>(x, &stream)?, read::<E>(dy, &stream)?);
            let ((t, _t), (dx, _dx)) = (read(t, &stream)?, dx.map(|dx| write(dx, &stream)).unzip());
            let ((grad, _grad), (workspace, _workspace)) =
                (write(&mut grad, &stream), write(&mut workspace, &stream));
            let mut grads = Vec::with_capacity(params.len());
            let mut rest = grad;
            for len in params {
                let (part, others) = rest.split(len).map_err(Error::wrap)?;
                grads.push(part);
                rest = others;
            }
            let call = BackwardGroup {
                x: Rows { data: x, rows, stride: d_in },
                t,
                dys: &[Rows { data: dy, rows, stride: d_out }],
                dx: dx.map(|dx| (RowsMut { data: dx, rows, stride: d_in }, Accum::Add)),
                grads: &mut grads,
                workspace,
            };
            cuda.backward_group(&group, call).map_err(Error::wrap)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(grad, device))
    }

    fn merge<E: Activation>(op: &KronOp, theta: Operand<Self>, w: &mut Self) -> Result<()> {
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

/// Cuts the buffer of all θ into terms.
fn device_terms<'a>(terms: &[Term], theta: DeviceSlice<'a, f32>) -> kron_core::Result<Vec<DeviceTerm<'a>>> {
    let mut at = 0;
    let term = |&Term { op, key, output }: &Term| {
        let begin = at;
        at += op.shape.params();
        Ok(DeviceTerm { op, theta: theta.part(begin..at)?, output, dropout: key })
    };
    terms.iter().map(term).collect()
}

/// Loaded kernels by device ordinal.
///
/// candle's ops have no state of their own, and loading the kernels takes longer than a training step.
static LOADED: Mutex<BTreeMap<usize, Cuda<Gpu>>> = Mutex::new(BTreeMap::new());

/// Returns the kernels on candle's stream, and loads them first if needed.
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

/// Allocates uninitialised memory; at least one element, because the driver cannot allocate zero bytes.
fn floats(device: &CudaDevice, len: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: any bits are a float32, and the kernels write T and the workspace before they read them.
    unsafe { device.alloc(len.max(1)) }
}

/// Borrows a contiguous operand for reading.
///
/// The guard reports the use to candle when it is dropped, after the call was queued.
fn read<'a, E: CudaDType>(
    (storage, layout): Operand<'a, CudaStorage>,
    stream: &'a CudaStream,
) -> Result<(DeviceSlice<'a, E>, SyncOnDrop<'a>)> {
    let (slice, range) = (storage.as_cuda_slice::<E>()?, range(layout)?);
    let (start, len) = (range.start, range.len());
    let Some(view) = slice.try_slice(range) else {
        bail!("an operand is {len} elements from element {start} on, but its storage has {}", slice.len());
    };
    let (pointer, guard) = view.view_ptr(stream);
    // SAFETY: the view holds `len` elements of E on this device, which `on` has compared with that of x; candle frees
    // and overwrites them in the order of the stream, or after the guard's event.
    let slice = unsafe { DeviceSlice::from_raw(pointer, len) };
    Ok((slice, guard))
}

/// Borrows a whole allocation for writing, with its guard.
fn write<'a, E>(
    slice: &'a mut CudaSlice<E>,
    stream: &'a CudaStream,
) -> (DeviceSliceMut<'a, E>, SyncOnDrop<'a>) {
    let len = slice.len();
    let (pointer, guard) = slice.device_ptr_mut(stream);
    // SAFETY: as in `read`, and the borrow is exclusive: a storage just made by an op belongs to no tensor yet.
    (unsafe { DeviceSliceMut::from_raw(pointer, len) }, guard)
}
