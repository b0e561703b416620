//! A problem in a device's memory, and the device, which one test has at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kron_core::{
    Accum, Backend, Backward, DropoutKey, Forward, KronOp, KronShape, LayerDims, Pass, Scale, Split,
};
use kron_kernels::{Cuda, DeviceVec, Gpu, Rows, RowsMut};

use crate::common::{Float, SCALE, random};
use crate::notice::notice;

/// The first GPU, for one test at a time: nobody may wait for a device while another captures its work.
/// Without one, `None` and a line on standard error.
pub fn device() -> Option<(MutexGuard<'static, ()>, Gpu)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Gpu::new(0) {
        Ok(gpu) => Some((alone, gpu)),
        Err(e) => {
            notice(format_args!("skipped: {e}"));
            None
        }
    }
}

/// The shape of a small problem on tensor cores.
pub fn aligned() -> KronShape {
    let layer = LayerDims { d_out: 160, d_in: 272 };
    KronShape::kron(layer, Split { a_out: 4, a_in: 2 }, 8).expect("legal")
}

/// A problem whose memory lies on the device.
pub struct Layer<E> {
    pub op: KronOp,
    rows: usize,
    theta: DeviceVec<f32>,
    x: DeviceVec<E>,
    y: DeviceVec<E>,
    dy: DeviceVec<E>,
    dx: DeviceVec<E>,
    t: DeviceVec<f32>,
    grad: DeviceVec<f32>,
    workspace: DeviceVec<f32>,
}

impl<E: Float> Layer<E> {
    pub fn new(gpu: &Gpu, shape: KronShape, rows: usize) -> Self {
        let op = KronOp::new(shape, Scale::new(SCALE).expect("finite"));
        let floats = |len, stream| gpu.upload(&random(len, stream)).expect("a little memory");
        let matrix = |width, stream| {
            let values: Vec<E> = random(rows * width, stream).into_iter().map(E::of).collect();
            gpu.upload(&values).expect("a little memory")
        };
        let scratch = [Pass::Forward, Pass::Backward { dx: true }];
        let scratch = scratch.map(|pass| Cuda::with(gpu).workspace_len(&op, pass, rows));
        Self {
            op,
            rows,
            theta: floats(shape.params(), 1),
            x: matrix(shape.d_in(), 2),
            y: matrix(shape.d_out(), 3),
            dy: matrix(shape.d_out(), 4),
            dx: matrix(shape.d_in(), 5),
            t: floats(op.t_len(rows), 6),
            grad: floats(shape.params(), 7),
            workspace: floats(scratch[0].max(scratch[1]), 8),
        }
    }

    /// Queues forward and backward, both of which add.
    pub fn queue(&mut self, on: &Cuda<&Gpu>, dropout: Option<DropoutKey>) -> kron_core::Result<()> {
        let (op, rows, accum) = (self.op, self.rows, Accum::Add);
        let (d_in, d_out) = (op.shape.d_in(), op.shape.d_out());
        let call = Forward {
            theta: self.theta.slice(),
            x: Rows { data: self.x.slice(), rows, stride: d_in },
            y: RowsMut { data: self.y.slice_mut(), rows, stride: d_out },
            accum,
            t: self.t.slice_mut(),
            workspace: self.workspace.slice_mut(),
            dropout,
        };
        on.forward(&op, call)?;
        let call = Backward {
            theta: self.theta.slice(),
            x: Rows { data: self.x.slice(), rows, stride: d_in },
            t: self.t.slice(),
            dy: Rows { data: self.dy.slice(), rows, stride: d_out },
            dx: Some((RowsMut { data: self.dx.slice_mut(), rows, stride: d_in }, accum)),
            grad: self.grad.slice_mut(),
            workspace: self.workspace.slice_mut(),
            dropout,
        };
        on.backward(&op, call)
    }

    /// Returns the bits of Y, T, dX and the gradient.
    pub fn bits(&self) -> Vec<u32> {
        fn read<E: Float>(memory: &DeviceVec<E>) -> impl Iterator<Item = u32> {
            let mut values = vec![E::of(0.0); memory.slice().len()];
            memory.read(&mut values).expect("the work ran");
            values.into_iter().map(Float::bits)
        }
        read(&self.y).chain(read(&self.t)).chain(read(&self.dx)).chain(read(&self.grad)).collect()
    }
}
