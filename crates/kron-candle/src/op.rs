//! The custom ops that candle's autograd sees: one whole adapted layer, or an
//! adapter added to an output that someone else computed. Each is written once
//! for every kind of [`Memory`].

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendDevice;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use kron_core::{DropoutKey, KronOp};

use crate::memory::{self, Backward, Forward, Memory, Operand, on, tensor, with_memory, with_number};

/// One call of an adapter, with what its backward needs besides x and θ.
pub(crate) struct Call {
    op: KronOp,
    key: Option<DropoutKey>,
    t: OnceLock<Tensor>,
}

impl Call {
    pub fn new(op: KronOp, key: Option<DropoutKey>) -> Self {
        Self { op, key, t: OnceLock::new() }
    }

    /// Adds the adapter's output to `y` and keeps T.
    fn forward<M: Memory>(&self, operands: Forward<M>, y: &mut M, rows: usize) -> Result<()> {
        let t = with_number!("activations are", y.dtype(), E => {
            M::forward::<E>(&self.op, operands, y, self.key)
        })?;
        match self.t.set(tensor(t, self.op.t_len(rows))) {
            Ok(()) => Ok(()),
            Err(_) => bail!("a call of an adapter ran twice, but it is made for one forward pass"),
        }
    }

    /// dθ; dX is added to `dx`.
    fn backward<M: Memory>(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: Operand<M>,
        dx: Option<&mut M>,
    ) -> Result<Tensor> {
        let Some(t) = self.t.get() else { bail!("backward of an adapter's call that has not run forward") };
        let place = dy.0.device().location();
        let dtheta = on(place, x, |x| {
            on(place, theta, |theta| {
                on(place, t, |t| {
                    let operands = Backward { theta, x, t, dy };
                    with_number!("a gradient is", dy.0.dtype(), E => {
                        M::backward::<E>(&self.op, operands, dx, self.key)
                    })
                })
            })
        })?;
        Ok(tensor(dtheta, theta.shape()))
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

impl Fused {
    fn forward<M: Memory>(&self, x: Operand<M>, theta: Operand<M>) -> Result<(M, Shape)> {
        let (rows, shape) = self.call.sizes(x.1)?;
        let place = x.0.device().location();
        let mut y = on(place, &self.weight.t()?, |w| M::product(x, w, rows))?;
        if let Some(bias) = &self.bias {
            on(
                place,
                bias,
                |bias| with_number!("activations are", y.dtype(), E => M::add_bias::<E>(&mut y, bias)),
            )?;
        }
        self.call.forward(Forward { theta, x }, &mut y, rows)?;
        Ok((y, shape))
    }

    /// dx, where it is wanted, and dθ.
    fn backward<M: Memory>(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let place = dy.device().location();
        let rows = dy.elem_count() / self.call.op.shape.d_out();
        on(place, dy, |dy| {
            let base = || on(place, &self.weight, |w| M::product(dy, w, rows));
            let mut dx = x.track_op().then(base).transpose()?;
            let dtheta = self.call.backward(x, theta, dy, dx.as_mut())?;
            Ok((dx.map(|dx| tensor(dx, x.shape())), Some(dtheta)))
        })
    }
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
        self.forward((x, x_layout), (theta, theta_layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        theta: &CudaStorage,
        theta_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward((x, x_layout), (theta, theta_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        theta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        with_memory!(dy.device(), M => self.backward::<M>(x, theta, &dy.contiguous()?))
    }
}

/// y + s·x·(A ⊗ (B·C))ᵀ as an op on (y, x, θ), for a base that is no matrix.
pub(crate) struct Added(pub Call);

impl Added {
    fn forward<M: Memory>(&self, y: Operand<M>, x: Operand<M>, theta: Operand<M>) -> Result<(M, Shape)> {
        let (rows, shape) = self.0.sizes(x.1)?;
        if *y.1.shape() != shape {
            bail!("the base's output is {:?}, but the adapter's is {shape:?}", y.1.shape());
        }
        // candle gives an op its inputs to read only, so the sum is a new tensor.
        let mut sum = memory::copy(y)?;
        self.0.forward(Forward { theta, x }, &mut sum, rows)?;
        Ok((sum, shape))
    }

    /// dx, where it is wanted, and dθ.
    fn backward<M: Memory>(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        on(dy.device().location(), dy, |dy: Operand<M>| {
            let zeros = || memory::zeros(dy.0, x.shape(), dy.0.dtype());
            let mut dx = x.track_op().then(zeros).transpose()?;
            let dtheta = self.0.backward(x, theta, dy, dx.as_mut())?;
            Ok((dx.map(|dx| tensor(dx, x.shape())), Some(dtheta)))
        })
    }
}

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
        self.forward((y, y_layout), (x, x_layout), (theta, theta_layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &CudaStorage,
        y_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        theta: &CudaStorage,
        theta_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward((y, y_layout), (x, x_layout), (theta, theta_layout))
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
        let (dx, dtheta) = with_memory!(dy.device(), M => self.backward::<M>(x, theta, &dy))?;
        Ok((y.track_op().then_some(dy), dx, dtheta))
    }
}

/// W + ΔW in memory of its own, d_out × d_in, rounded once.
pub(crate) fn merge(op: &KronOp, theta: &Tensor, weight: &Tensor) -> Result<Tensor> {
    fn merge_on<M: Memory>(op: &KronOp, theta: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let place = weight.device().location();
        let mut merged: M = on(place, weight, memory::copy)?;
        on(
            place,
            theta,
            |theta| with_number!("the weight is", merged.dtype(), E => M::merge::<E>(op, theta, &mut merged)),
        )?;
        Ok(tensor(merged, weight.shape()))
    }
    with_memory!(weight.device(), M => merge_on::<M>(op, theta, weight))
}
