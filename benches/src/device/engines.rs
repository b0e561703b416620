//! What competes on a device.

use std::sync::Arc;

use cudarc::driver::CudaSlice;
use kron_core::{Accum, Backend, Backward, Error, Forward, KronOp, Merge, Pass, Result, Theta};
use ndarray::Array2;

use super::gpu::{Device, DeviceSet, Number, failed, plain, reads, rows, rows_mut, transposed, writes};
use crate::data::flat;
use crate::engines::Kind;
use crate::plan::Entry;
use crate::problem::Problem;

/// One way to compute one layer's forward and backward on the device. Calls queue work.
pub trait Engine<E: Number> {
    /// Adds the adapter's output to Y (the base layer overwrites it) and keeps T.
    fn forward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()>;
    /// Adds to dX and to the gradient.
    fn backward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()>;
    /// The gradient, \[dA | dB | dC\].
    fn grad(&self, _: &Device) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }
    /// Sets the gradient to 0.
    fn clear(&mut self, _: &Device) -> Result<()> {
        Ok(())
    }
    /// Bytes of T and of buffers kept between calls.
    fn scratch_bytes(&self) -> usize;
}

/// Makes the engine of an entry.
pub fn build<E: Number>(
    device: &Device,
    entry: &Entry,
    theta: Option<&Theta>,
    weight: Option<&Arc<Array2<E>>>,
    most_rows: usize,
) -> Result<Box<dyn Engine<E>>> {
    match (entry.kind, entry.problem, theta, weight) {
        (Kind::Linear, Problem::Linear { d_out, d_in }, _, Some(weight)) => {
            Ok(Box::new(Linear { d_out, d_in, weight: device.upload(flat(weight))? }))
        }
        (Kind::LoraFused | Kind::KronFused, Problem::Adapter(op), Some(theta), _) => {
            Ok(Box::new(Fused::new(device, op, theta, most_rows)?))
        }
        (Kind::LoraGemm, Problem::Adapter(op), Some(theta), _) => {
            Ok(Box::new(Lora::new(device, op, theta, most_rows)?))
        }
        (Kind::KronDense, Problem::Adapter(op), Some(theta), _) => {
            Ok(Box::new(Dense::new(device, op, theta, most_rows)?))
        }
        (kind, problem, ..) => {
            Err(Error::Unsupported(format!("{} on {problem:?} does not run on a device", kind.name())))
        }
    }
}

/// `linear`: the frozen layer by one product.
struct Linear<E> {
    d_out: usize,
    d_in: usize,
    /// W, d_out × d_in.
    weight: CudaSlice<E>,
}

impl<E: Number> Engine<E> for Linear<E> {
    fn forward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, d_out, d_in) = (set.rows, self.d_out, self.d_in);
        let (x, w) = (plain(&set.x, d_in), transposed(&self.weight, d_in));
        E::product(device, (n, d_out, d_in), 1.0, x, w, &mut set.y, false)
    }

    fn backward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, d_out, d_in) = (set.rows, self.d_out, self.d_in);
        let (dy, w) = (plain(&set.dy, d_out), plain(&self.weight, d_in));
        E::product(device, (n, d_in, d_out), 1.0, dy, w, &mut set.dx, true)
    }

    fn scratch_bytes(&self) -> usize {
        0
    }
}

/// `lora-fused` and `kron-fused`: our kernels.
struct Fused {
    op: KronOp,
    theta: CudaSlice<f32>,
    grad: CudaSlice<f32>,
    workspace: CudaSlice<f32>,
    t_len: usize,
}

impl Fused {
    fn new(device: &Device, op: KronOp, theta: &Theta, most_rows: usize) -> Result<Self> {
        let len = |pass| device.cuda.workspace_len(&op, pass, most_rows);
        Ok(Self {
            op,
            theta: device.upload(theta.as_slice())?,
            grad: device.zeros(op.shape.params())?,
            workspace: device.zeros(len(Pass::Forward).max(len(Pass::Backward)))?,
            t_len: op.t_len(most_rows),
        })
    }
}

impl<E: Number> Engine<E> for Fused {
    fn forward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, s) = (set.rows, &self.op.shape);
        let call = Forward {
            theta: reads(device, &self.theta),
            x: rows(device, &set.x, n, s.d_in()),
            y: rows_mut(device, &mut set.y, n, s.d_out()),
            accum: Accum::Add,
            t: writes(device, &mut set.t),
            workspace: writes(device, &mut self.workspace),
            dropout: None,
        };
        device.cuda.forward(&self.op, call)
    }

    fn backward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, s) = (set.rows, &self.op.shape);
        let call = Backward {
            theta: reads(device, &self.theta),
            x: rows(device, &set.x, n, s.d_in()),
            t: reads(device, &set.t),
            dy: rows(device, &set.dy, n, s.d_out()),
            dx: Some((rows_mut(device, &mut set.dx, n, s.d_in()), Accum::Add)),
            grad: writes(device, &mut self.grad),
            workspace: writes(device, &mut self.workspace),
            dropout: None,
        };
        device.cuda.backward(&self.op, call)
    }

    fn grad(&self, device: &Device) -> Result<Vec<f32>> {
        device.download(&self.grad)
    }

    fn clear(&mut self, device: &Device) -> Result<()> {
        device.stream.memset_zeros(&mut self.grad).map_err(failed("a fill"))
    }

    fn scratch_bytes(&self) -> usize {
        4 * (self.t_len + self.workspace.len())
    }
}

/// `lora-gemm`: each direction by products of two matrices that accumulate
/// into their output; the factors, T and the gradient in the activations' type.
struct Lora<E> {
    op: KronOp,
    b: CudaSlice<E>,
    c: CudaSlice<E>,
    db: CudaSlice<E>,
    dc: CudaSlice<E>,
    dt: CudaSlice<E>,
}

impl<E: Number> Lora<E> {
    fn new(device: &Device, op: KronOp, theta: &Theta, most_rows: usize) -> Result<Self> {
        let rounded = |values: &[f32]| values.iter().map(|&v| E::from_f32(v)).collect::<Vec<E>>();
        Ok(Self {
            op,
            b: device.upload(&rounded(theta.b()))?,
            c: device.upload(&rounded(theta.c()))?,
            db: device.zeros(op.shape.b_len())?,
            dc: device.zeros(op.shape.c_len())?,
            dt: device.zeros(op.t_len(most_rows))?,
        })
    }
}

impl<E: Number> Engine<E> for Lora<E> {
    fn forward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, s, scale) = (set.rows, self.op.shape, self.op.scale.get());
        let (d_out, d_in, r) = (s.d_out(), s.d_in(), s.width());
        // T = X·Cᵀ, Y += s·T·Bᵀ.
        let (x, c) = (plain(&set.x, d_in), transposed(&self.c, d_in));
        E::product(device, (n, r, d_in), 1.0, x, c, &mut set.t_rounded, false)?;
        let (t, b) = (plain(&set.t_rounded, r), transposed(&self.b, r));
        E::product(device, (n, d_out, r), scale, t, b, &mut set.y, true)
    }

    fn backward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, s, scale) = (set.rows, self.op.shape, self.op.scale.get());
        let (d_out, d_in, r) = (s.d_out(), s.d_in(), s.width());
        // dT = s·dY·B, dB += s·dYᵀ·T, dC += dTᵀ·X, dX += dT·C.
        let (dy, b) = (plain(&set.dy, d_out), plain(&self.b, r));
        E::product(device, (n, r, d_out), scale, dy, b, &mut self.dt, false)?;
        let (dy, t) = (transposed(&set.dy, d_out), plain(&set.t_rounded, r));
        E::product(device, (d_out, r, n), scale, dy, t, &mut self.db, true)?;
        let (dt, x) = (transposed(&self.dt, r), plain(&set.x, d_in));
        E::product(device, (r, d_in, n), 1.0, dt, x, &mut self.dc, true)?;
        let (dt, c) = (plain(&self.dt, r), plain(&self.c, d_in));
        E::product(device, (n, d_in, r), 1.0, dt, c, &mut set.dx, true)
    }

    fn grad(&self, device: &Device) -> Result<Vec<f32>> {
        let [db, dc] = [device.download(&self.db)?, device.download(&self.dc)?];
        Ok(db.iter().chain(&dc).map(|v| v.to_f32()).collect())
    }

    fn clear(&mut self, device: &Device) -> Result<()> {
        device.stream.memset_zeros(&mut self.db).map_err(failed("a fill"))?;
        device.stream.memset_zeros(&mut self.dc).map_err(failed("a fill"))
    }

    fn scratch_bytes(&self) -> usize {
        2 * self.dt.len() * size_of::<E>()
    }
}

/// `kron-dense`: ΔW materialised at every call, then one product; forward alone.
struct Dense<E> {
    op: KronOp,
    theta: CudaSlice<f32>,
    delta: CudaSlice<E>,
    workspace: CudaSlice<f32>,
}

impl<E: Number> Dense<E> {
    fn new(device: &Device, op: KronOp, theta: &Theta, _: usize) -> Result<Self> {
        let (d_out, d_in) = (op.shape.d_out(), op.shape.d_in());
        Ok(Self {
            op,
            theta: device.upload(theta.as_slice())?,
            delta: device.zeros(d_out * d_in)?,
            workspace: device.zeros(device.cuda.workspace_len(&op, Pass::Merge, d_out))?,
        })
    }
}

impl<E: Number> Engine<E> for Dense<E> {
    fn forward(&mut self, device: &Device, set: &mut DeviceSet<E>) -> Result<()> {
        let (n, d_out, d_in) = (set.rows, self.op.shape.d_out(), self.op.shape.d_in());
        let call = Merge {
            theta: reads(device, &self.theta),
            w: rows_mut(device, &mut self.delta, d_out, d_in),
            first_row: 0,
            accum: Accum::Replace,
            workspace: writes(device, &mut self.workspace),
        };
        device.cuda.merge(&self.op, call)?;
        let (x, delta) = (plain(&set.x, d_in), transposed(&self.delta, d_in));
        E::product(device, (n, d_out, d_in), 1.0, x, delta, &mut set.y, true)
    }

    fn backward(&mut self, _: &Device, _: &mut DeviceSet<E>) -> Result<()> {
        Err(Error::Unsupported("kron-dense runs forward alone on a device".into()))
    }

    fn scratch_bytes(&self) -> usize {
        self.delta.len() * size_of::<E>()
    }
}
