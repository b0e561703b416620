//! The custom ops that candle's autograd sees: one whole adapted layer, or an
//! adapter added to an output that someone else computed.

use std::sync::OnceLock;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use kron_core::{DropoutKey, KronOp};

use crate::host::{self, Operand};

/// One call of an adapter, with what its backward needs besides x and θ.
pub(crate) struct Call {
    op: KronOp,
    key: Option<DropoutKey>,
    t: OnceLock<Vec<f32>>,
}

impl Call {
    pub fn new(op: KronOp, key: Option<DropoutKey>) -> Self {
        Self { op, key, t: OnceLock::new() }
    }

    /// Adds the adapter's output to `y` and keeps T.
    fn forward(&self, x: Operand, theta: Operand, y: &mut CpuStorage) -> Result<()> {
        let t = host::forward(&self.op, x, theta, y, self.key)?;
        match self.t.set(t) {
            Ok(()) => Ok(()),
            Err(_) => bail!("a call of an adapter ran twice, but it is made for one forward pass"),
        }
    }

    /// dθ; dX is added to `dx`.
    fn backward(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: &Tensor,
        dx: Option<&mut CpuStorage>,
    ) -> Result<Tensor> {
        let Some(t) = self.t.get() else { bail!("backward of an adapter's call that has not run forward") };
        let grad = on_host(x, |x| {
            on_host(theta, |theta| {
                on_host(dy, |dy| host::backward(&self.op, [x, theta, dy], t, dx, self.key))
            })
        })?;
        Tensor::from_vec(grad, theta.shape(), theta.device())
    }

    /// n of x, whose last dimension is d_in, and the output's shape.
    fn sizes(&self, x: &Layout) -> Result<(usize, Shape)> {
        let (d_in, d_out) = (self.op.shape.d_in(), self.op.shape.d_out());
        match x.dims().split_last() {
            Some((&last, outer)) if last == d_in => {
                let shape = Shape::from([outer, &[d_out]].concat());
                Ok((outer.iter().product(), shape))
            }
            _ => bail!("x is {:?}, but the last dimension of an adapter's input is d_in = {d_in}", x.shape()),
        }
    }
}

/// y = x·Wᵀ + bias + s·x·(A ⊗ (B·C))ᵀ as an op on (x, θ): one buffer for y, one for dx.
pub(crate) struct Fused {
    pub call: Call,
    /// W, d_out × d_in; frozen.
    pub weight: Tensor,
    /// d_out; frozen.
    pub bias: Option<Tensor>,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "kron-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        theta: &CpuStorage,
        theta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, shape) = self.call.sizes(x_layout)?;
        let x = (x, x_layout);
        let mut y = on_host(&self.weight.t()?, |w| host::product(x, w, rows))?;
        if let Some(bias) = &self.bias {
            on_host(bias, |bias| host::add_bias(&mut y, bias))?;
        }
        self.call.forward(x, (theta, theta_layout), &mut y)?;
        Ok((y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        theta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let rows = dy.elem_count() / self.call.op.shape.d_out();
        let base = || on_host(&dy, |dy| on_host(&self.weight, |w| host::product(dy, w, rows)));
        let mut dx = x.track_op().then(base).transpose()?;
        let dtheta = self.call.backward(x, theta, &dy, dx.as_mut())?;
        Ok((dx.map(|dx| tensor(dx, x.shape())), Some(dtheta)))
    }
}

/// y + s·x·(A ⊗ (B·C))ᵀ as an op on (y, x, θ), for a base that is no matrix.
pub(crate) struct Added(pub Call);

impl CustomOp3 for Added {
    fn name(&self) -> &'static str {
        "kron-add"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        theta: &CpuStorage,
        theta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, shape) = self.0.sizes(x_layout)?;
        if *y_layout.shape() != shape {
            bail!("the base's output is {:?}, but the adapter's is {shape:?}", y_layout.shape());
        }
        // candle gives an op its inputs to read only, so the sum is a new tensor.
        let mut sum = match y {
            CpuStorage::F32(_) => CpuStorage::F32(host::numbers((y, y_layout))?.to_vec()),
            CpuStorage::F16(_) => CpuStorage::F16(host::numbers((y, y_layout))?.to_vec()),
            CpuStorage::BF16(_) => CpuStorage::BF16(host::numbers((y, y_layout))?.to_vec()),
            _ => bail!("a base's output is f32, f16 or bf16"),
        };
        self.0.forward((x, x_layout), (theta, theta_layout), &mut sum)?;
        Ok((sum, shape))
    }

    fn bwd(
        &self,
        y: &Tensor,
        x: &Tensor,
        theta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let zeros = match (x.track_op(), dy.dtype()) {
            (false, _) => None,
            (true, DType::F32) => Some(CpuStorage::F32(vec![0.0; x.elem_count()])),
            (true, DType::F16) => Some(CpuStorage::F16(vec![half::f16::ZERO; x.elem_count()])),
            (true, DType::BF16) => Some(CpuStorage::BF16(vec![half::bf16::ZERO; x.elem_count()])),
            (true, other) => bail!("a gradient is {other:?}, but an adapter takes f32, f16 or bf16"),
        };
        let mut dx = zeros;
        let dtheta = self.0.backward(x, theta, &dy, dx.as_mut())?;
        Ok((y.track_op().then(|| dy.clone()), dx.map(|dx| tensor(dx, x.shape())), Some(dtheta)))
    }
}

/// Calls `f` with a tensor's storage.
pub(crate) fn on_host<T>(tensor: &Tensor, f: impl FnOnce(Operand) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f((storage, layout)),
        _ => bail!("a tensor is on {:?}, but an adapter runs on the CPU", tensor.device().location()),
    }
}

/// A tensor that no op made.
pub(crate) fn tensor(storage: CpuStorage, shape: &Shape) -> Tensor {
    Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false)
}
