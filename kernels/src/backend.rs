//! [`Cuda`]: kron-core's backend for device memory.
//!
//! The caller provides device memory and a stream by raw handles, so it can use any
//! framework. A call queues its kernels and returns. It allocates nothing, waits for
//! nothing, and can be captured in a CUDA graph.

use std::sync::Arc;

use arrayvec::ArrayVec;
use kron_core::{Accum, Backend, Backward, Element, Error, Forward, KronOp, Merge, Pass, Result};

#[cfg(feature = "cuda")]
use crate::Gpu;
use crate::device::{DeviceSlice, DeviceSliceMut, KeyHandle, Rows, RowsMut, StreamHandle};
use crate::launch::{params, run};
use crate::launcher::Launcher;
use crate::{Problem, check, plan};

/// Forward, backward and merge on a device, queued on one of its streams.
///
/// Clones share the device; [`Cuda::on`] returns one for another stream.
#[derive(Debug)]
pub struct Cuda<L> {
    launcher: Arc<L>,
    stream: StreamHandle,
    key: Option<KeyHandle>,
}

impl<L> Clone for Cuda<L> {
    fn clone(&self) -> Self {
        Self { launcher: Arc::clone(&self.launcher), stream: self.stream, key: self.key }
    }
}

#[cfg(feature = "cuda")]
impl Cuda<Gpu> {
    /// Loads the kernels on device `ordinal`; calls go to its default stream.
    ///
    /// # Errors
    /// Fails without a driver, if the device does not exist, or if the kernels have no code for it.
    pub fn new(ordinal: usize) -> Result<Self> {
        Ok(Self::with(Gpu::new(ordinal)?))
    }
}

impl<L> Cuda<L> {
    /// Wraps a device or its emulation; calls go to the default stream.
    pub fn with(launcher: L) -> Self {
        Self { launcher: Arc::new(launcher), stream: StreamHandle::DEFAULT, key: None }
    }

    /// Returns the same device with another of its streams.
    pub fn on(&self, stream: StreamHandle) -> Self {
        Self { stream, ..self.clone() }
    }

    /// Returns the same device, whose calls with dropout add two numbers in its memory to their key.
    ///
    /// A graph repeats the keys that its calls were captured with. With a handle each replay can have another
    /// mask: the caller changes the numbers between the replays. Forward and backward of one step need the
    /// same numbers.
    pub fn with_key(&self, key: KeyHandle) -> Self {
        Self { key: Some(key), ..self.clone() }
    }

    /// Returns the device address of the two numbers added to each call's key; null without them.
    pub(crate) fn key(&self) -> *const u64 {
        self.key.map_or(std::ptr::null(), |key| key.raw() as _)
    }

    /// Returns the stream of the calls.
    pub(crate) const fn stream(&self) -> StreamHandle {
        self.stream
    }

    /// Returns the device.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }
}

impl<L: Launcher> Backend for Cuda<L> {
    type Rows<'a, E: Element> = Rows<'a, E>;
    type RowsMut<'a, E: Element> = RowsMut<'a, E>;
    type Floats<'a> = DeviceSlice<'a, f32>;
    type FloatsMut<'a> = DeviceSliceMut<'a, f32>;

    fn workspace_len(&self, op: &KronOp, pass: Pass, rows: usize) -> usize {
        plan::workspace_len(op.shape, pass, rows).unwrap_or(0)
    }

    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()> {
        let (shape, n) = (op.shape, call.x.rows);
        let theta = check::theta(&shape, call.theta)?;
        let x = check::rows("x", call.x.data.len(), n, shape.d_in(), call.x.stride)?;
        let y = check::rows("y", call.y.data.len(), call.y.rows, shape.d_out(), call.y.stride)?;
        check::row_count("y", call.y.rows, n)?;
        check::len("t", call.t.len(), check::size("t", n, shape.t_row())?)?;
        let problem = Problem {
            shape,
            dtype: E::DTYPE,
            pass: Pass::Forward,
            rows: n,
            accumulate: call.accum == Accum::Add,
            aligned: check::aligned::<E>(
                [theta, call.t.pointer(), check::address(call.workspace.len(), call.workspace.pointer())],
                &[(call.x.data.pointer(), x), (call.y.data.pointer(), y)],
            ),
        };
        let plan = self.launcher.plan(&problem)?;
        check::len("workspace", call.workspace.len(), plan.workspace)?;
        let mut p = params(&problem, &plan, op, theta, call.dropout, call.workspace.pointer());
        p.x = call.x.data.pointer() as _;
        p.y = call.y.data.pointer() as _;
        (p.x_stride, p.y_stride) = (x as i64, y as i64);
        (p.t, p.key) = (call.t.pointer() as _, self.key());
        run(&*self.launcher, &problem, &plan, p, self.stream)
    }

    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()> {
        let (shape, n) = (op.shape, call.x.rows);
        let theta = check::theta(&shape, call.theta)?;
        let x = check::rows("x", call.x.data.len(), n, shape.d_in(), call.x.stride)?;
        let dy = check::rows("dy", call.dy.data.len(), call.dy.rows, shape.d_out(), call.dy.stride)?;
        check::row_count("dy", call.dy.rows, n)?;
        check::len("t", call.t.len(), check::size("t", n, shape.t_row())?)?;
        check::theta_len("grad", call.grad.len(), &shape)?;
        let both = [(call.x.data.pointer(), x), (call.dy.data.pointer(), dy)];
        let mut matrices = ArrayVec::<_, 3>::from_iter(both);
        if let Some((dx, _)) = &call.dx {
            check::row_count("dx", dx.rows, n)?;
            matrices.push((dx.data.pointer(), check::rows("dx", dx.data.len(), n, shape.d_in(), dx.stride)?));
        }
        let problem = Problem {
            shape,
            dtype: E::DTYPE,
            pass: Pass::Backward { dx: call.dx.is_some() },
            rows: n,
            accumulate: matches!(call.dx, Some((_, Accum::Add))),
            aligned: check::aligned::<E>(
                [theta, call.t.pointer(), check::address(call.workspace.len(), call.workspace.pointer())],
                &matrices,
            ),
        };
        let plan = self.launcher.plan(&problem)?;
        check::len("workspace", call.workspace.len(), plan.workspace)?;
        let mut p = params(&problem, &plan, op, theta, call.dropout, call.workspace.pointer());
        p.x = call.x.data.pointer() as _;
        p.dy = call.dy.data.pointer() as _;
        (p.x_stride, p.dy_stride) = (x as i64, dy as i64);
        if let Some((dx, _)) = &call.dx {
            p.dx = dx.data.pointer() as _;
            p.dx_stride = dx.stride as i64;
        }
        (p.t, p.key) = (call.t.pointer() as _, self.key());
        p.grad = call.grad.pointer() as _;
        // Only `down` writes T in parts; here it is summed.
        p.t_splits = 1;
        run(&*self.launcher, &problem, &plan, p, self.stream)
    }

    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()> {
        let shape = op.shape;
        let theta = check::theta(&shape, call.theta)?;
        let stride = check::rows("w", call.w.data.len(), call.w.rows, shape.d_in(), call.w.stride)?;
        if call.first_row.checked_add(call.w.rows).is_none_or(|end| end > shape.d_out()) {
            return Err(Error::Buffer {
                what: "w",
                got: format!("{} rows from row {}", call.w.rows, call.first_row),
                rule: format!("the weight has {} rows", shape.d_out()),
            });
        }
        let problem = Problem {
            shape,
            dtype: E::DTYPE,
            pass: Pass::Merge,
            rows: call.w.rows,
            accumulate: call.accum == Accum::Add,
            aligned: check::aligned::<E>([theta, 0, 0], &[(call.w.data.pointer(), stride)]),
        };
        let plan = self.launcher.plan(&problem)?;
        let mut p = params(&problem, &plan, op, theta, None, 0);
        p.w = call.w.data.pointer() as _;
        p.w_stride = stride as i64;
        (p.first_row, p.w_rows) = (call.first_row as i64, call.w.rows as i64);
        run(&*self.launcher, &problem, &plan, p, self.stream)
    }
}
