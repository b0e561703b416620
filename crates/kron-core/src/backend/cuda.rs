//! The CUDA backend: the fused kernels of `kron-kernels` on a device's memory.
//!
//! The caller brings device memory and a stream by their raw handles, so any
//! framework's fit. A call queues its kernels and returns: it allocates
//! nothing, waits for nothing, and can be captured in a CUDA graph.

use std::sync::Arc;

#[cfg(feature = "emulate")]
pub use kron_kernels::Emulated;
pub use kron_kernels::{DeviceSlice, DeviceSliceMut, Launcher, Rows, RowsMut, StreamHandle};
#[cfg(feature = "cuda")]
pub use kron_kernels::{DeviceVec, Gpu};

use super::{Accum, Backend, Backward, Forward, Merge, Pass};
use crate::{DropoutKey, Element, Error, Inner, KronOp, KronShape, Outer, Result};

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
        let pass = match pass {
            Pass::Forward => kron_kernels::Pass::Forward,
            Pass::Backward => kron_kernels::Pass::Backward { dx: true },
            Pass::Merge => kron_kernels::Pass::Merge,
        };
        let len = factors(&op.shape).and_then(|f| Ok(kron_kernels::workspace_len(f, pass, rows)?));
        len.unwrap_or(0)
    }

    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()> {
        let call = kron_kernels::Forward {
            factors: factors(&op.shape)?,
            scale: op.scale.get(),
            dropout: dropout(op, call.dropout),
            theta: call.theta,
            x: call.x,
            y: call.y,
            accumulate: call.accum == Accum::Add,
            t: call.t,
            workspace: call.workspace,
        };
        kron_kernels::forward(self.launcher(), call, self.stream)?;
        Ok(())
    }

    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()> {
        let accumulate = matches!(call.dx, Some((_, Accum::Add)));
        let call = kron_kernels::Backward {
            factors: factors(&op.shape)?,
            scale: op.scale.get(),
            dropout: dropout(op, call.dropout),
            theta: call.theta,
            x: call.x,
            t: call.t,
            dy: call.dy,
            dx: call.dx.map(|(dx, _)| dx),
            accumulate,
            grad: call.grad,
            workspace: call.workspace,
        };
        kron_kernels::backward(self.launcher(), call, self.stream)?;
        Ok(())
    }

    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()> {
        let call = kron_kernels::Merge {
            factors: factors(&op.shape)?,
            scale: op.scale.get(),
            theta: call.theta,
            w: call.w,
            first_row: call.first_row,
            accumulate: call.accum == Accum::Add,
        };
        kron_kernels::merge(self.launcher(), call, self.stream)?;
        Ok(())
    }
}

/// The shape as the kernels take it, whose integers are 32 bits wide.
fn factors(s: &KronShape) -> Result<kron_kernels::Factors> {
    let rank = s.rank().unwrap_or(1);
    let factors = match s.outer() {
        Outer::Trained => kron_kernels::Factors::kron(s.a_out(), s.a_in(), s.b_out(), s.c_in(), rank),
        Outer::One => kron_kernels::Factors::lora(s.d_out(), s.d_in(), rank),
    }?;
    Ok(match s.inner() {
        Inner::LowRank(_) => factors,
        Inner::Full => factors.full()?,
    })
}

fn dropout(op: &KronOp, key: Option<DropoutKey>) -> Option<kron_kernels::Dropout> {
    key.map(|DropoutKey { seed, offset }| kron_kernels::Dropout {
        threshold: op.dropout.threshold(),
        keep_scale: op.dropout.keep_scale(),
        seed,
        offset,
    })
}

impl From<kron_kernels::Error> for Error {
    fn from(e: kron_kernels::Error) -> Self {
        match e {
            kron_kernels::Error::Problem(sentence) => Error::Shape(sentence),
            kron_kernels::Error::Buffer { what, got, rule } => Error::Buffer { what, got, rule },
            kron_kernels::Error::Unavailable(sentence) => Error::Unsupported(sentence),
            e => Error::Device(e.to_string()),
        }
    }
}
