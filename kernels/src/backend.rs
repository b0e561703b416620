//! [`Cuda`]: kron-core's backend on a device's memory.
//!
//! The caller brings device memory and a stream by their raw handles, so any
//! framework's fit. A call queues its kernels and returns: it allocates
//! nothing, waits for nothing, and can be captured in a CUDA graph.

use std::sync::Arc;

use kron_core::{Backend, Backward, Element, Forward, KronOp, Merge, Pass, Result};

#[cfg(feature = "cuda")]
use crate::Gpu;
use crate::device::{DeviceSlice, DeviceSliceMut, Rows, RowsMut, StreamHandle};
use crate::launch::{self, Launcher};
use crate::plan;

/// Forward, backward and merge on a device, queued on one of its streams.
///
/// Clones share the device; [`Cuda::on`] gives one for another stream.
#[derive(Debug)]
pub struct Cuda<L> {
    launcher: Arc<L>,
    stream: StreamHandle,
}

impl<L> Clone for Cuda<L> {
    fn clone(&self) -> Self {
        Self { launcher: Arc::clone(&self.launcher), stream: self.stream }
    }
}

#[cfg(feature = "cuda")]
impl Cuda<Gpu> {
    /// Loads the kernels on device `ordinal`; calls go to its default stream.
    ///
    /// # Errors
    /// No driver, no such device, or one that the kernels have no code for.
    pub fn new(ordinal: usize) -> Result<Self> {
        Ok(Self::with(Gpu::new(ordinal)?))
    }
}

impl<L> Cuda<L> {
    /// A device, or its emulation, that is ready already.
    pub fn with(launcher: L) -> Self {
        Self { launcher: Arc::new(launcher), stream: StreamHandle::DEFAULT }
    }

    /// The same device, on another of its streams.
    pub fn on(&self, stream: StreamHandle) -> Self {
        Self { stream, ..self.clone() }
    }

    /// The device.
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
        launch::forward(self.launcher(), op, call, self.stream)
    }

    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()> {
        launch::backward(self.launcher(), op, call, self.stream)
    }

    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()> {
        launch::merge(self.launcher(), op, call, self.stream)
    }
}
