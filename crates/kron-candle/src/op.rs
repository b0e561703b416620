//! Custom op for candle's autograd: a whole adapted layer, written once over [`DeviceOps`].

use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendDevice;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use crate::base::FrozenLinear;
use crate::device_ops::{
    self, BackwardInputs, DeviceOps, ForwardInputs, Operand, Term, flat, on, tensor, with_activation,
    with_device_ops,
};
use crate::trainable_delta::TrainableDelta;

/// One call of the terms of an adapter, with the state that its backward pass needs besides x and θ.
pub(crate) struct Call {
    terms: Vec<Term>,
    t: OnceLock<Tensor>,
}

impl Call {
    /// Takes at least one term; all are of one size.
    pub fn new(terms: Vec<Term>) -> Self {
        Self { terms, t: OnceLock::new() }
    }

    /// Adds the adapter's output to `y`, and stores T.
    fn forward<S: DeviceOps>(&self, inputs: ForwardInputs<S>, y: &mut S) -> Result<()> {
        let t = with_activation!("activations are", y.dtype(), E => {
            S::forward::<E>(&self.terms, inputs, y)
        })?;
        match self.t.set(flat(t)?) {
            Ok(()) => Ok(()),
            Err(_) => bail!("a call of an adapter ran twice, but it is made for one forward pass"),
        }
    }

    /// Returns dθ; adds dX to `dx`.
    fn backward<S: DeviceOps>(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: Operand<S>,
        dx: Option<&mut S>,
    ) -> Result<Tensor> {
        let Some(t) = self.t.get() else { bail!("backward of an adapter's call that has not run forward") };
        let location = dy.0.device().location();
        let dtheta = on(location, x, |x| {
            on(location, theta, |theta| {
                on(location, t, |t| {
                    let inputs = BackwardInputs { theta, x, t, dy };
                    with_activation!("a gradient is", dy.0.dtype(), E => {
                        S::backward::<E>(&self.terms, inputs, dx)
                    })
                })
            })
        })?;
        flat(dtheta)
    }

    /// Returns the shape of the output for x, … × d_in.
    fn output_shape(&self, x: &Layout) -> Result<Shape> {
        let (d_in, d_out) = (self.terms[0].op.shape.d_in(), self.terms[0].op.shape.d_out());
        match x.dims().split_last() {
            Some((&last, outer)) if last == d_in => Ok(Shape::from([outer, &[d_out]].concat())),
            _ => bail!("x is {:?}, but the last dimension of an adapter's input is d_in = {d_in}", x.shape()),
        }
    }
}

/// Op on (x, θ): y = base(x) + s·x·(A ⊗ (B·C))ᵀ, with one buffer for y and one for dx.
pub(crate) struct Fused {
    pub call: Call,
    pub base: Arc<dyn FrozenLinear>,
}

impl Fused {
    fn forward<S: DeviceOps>(&self, x: Operand<S>, theta: Operand<S>) -> Result<(S, Shape)> {
        let shape = self.call.output_shape(x.1)?;
        let mut y = S::base_forward(&*self.base, x)?;
        self.call.forward(ForwardInputs { theta, x }, &mut y)?;
        Ok((y, shape))
    }

    /// Returns dx, if it is wanted, and dθ.
    pub fn backward(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: &Tensor,
        wants_dx: bool,
    ) -> Result<(Option<Tensor>, Tensor)> {
        with_device_ops!(dy.device(), S => self.backward_on::<S>(x, theta, &dy.contiguous()?, wants_dx))
    }

    fn backward_on<S: DeviceOps>(
        &self,
        x: &Tensor,
        theta: &Tensor,
        dy: &Tensor,
        wants_dx: bool,
    ) -> Result<(Option<Tensor>, Tensor)> {
        on(dy.device().location(), dy, |dy| {
            let base = || S::base_backward(&*self.base, dy);
            let mut dx = wants_dx.then(base).transpose()?;
            let dtheta = self.call.backward(x, theta, dy, dx.as_mut())?;
            Ok((dx.map(|dx| tensor(dx, x.shape())), dtheta))
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
        let (dx, dtheta) = self.backward(x, theta, dy, x.track_op())?;
        Ok((dx, Some(dtheta)))
    }
}

/// Returns W + ΔW as a new tensor, d_out × d_in, rounded once; the terms of a sum are added in float32.
pub(crate) fn merge(deltas: &[TrainableDelta], weight: &Tensor) -> Result<Tensor> {
    fn merge_on<S: DeviceOps>(delta: &TrainableDelta, weight: &Tensor) -> Result<Tensor> {
        let location = weight.device().location();
        let mut merged: S = on(location, weight, device_ops::copy)?;
        on(
            location,
            delta.theta(),
            |theta| with_activation!("the weight is", merged.dtype(), E => S::merge::<E>(delta.op(), theta, &mut merged)),
        )?;
        Ok(tensor(merged, weight.shape()))
    }
    let one = |weight: Tensor, delta| with_device_ops!(weight.device(), S => merge_on::<S>(delta, &weight));
    match deltas {
        [] => Ok(weight.clone()),
        [delta] => one(weight.clone(), delta),
        all => {
            // Through float32 any dtype would pass.
            with_activation!("the weight is", weight.dtype(), E => Ok::<_, candle_core::Error>(<E as kron_core::Element>::DTYPE))?;
            all.iter().try_fold(weight.to_dtype(DType::F32)?, one)?.to_dtype(weight.dtype())
        }
    }
}
