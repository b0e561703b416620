//! Frozen matrices, and the op of a frozen base without an adapter.

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendDevice;
use candle_core::{CpuStorage, CustomOp1, DeviceLocation, Layout, Result, Shape, Tensor, bail};
use candle_nn::Linear;
use kron_core::LayerDims;

use crate::base::FrozenLinear;
use crate::cpu;
use crate::device_ops::{DeviceOps, Operand, on, tensor, with_activation, with_device_ops};

/// A frozen matrix; its weight gets no gradient.
impl FrozenLinear for Linear {
    fn dims(&self) -> LayerDims {
        let (d_out, d_in) = self.weight().dims2().unwrap_or_default();
        LayerDims { d_out, d_in }
    }

    fn cpu_forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        forward(self, (x, layout))
    }

    fn cpu_backward(&self, dy: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        backward(self, (dy, layout))
    }

    fn cpu_backward_add(&self, dy: &CpuStorage, layout: &Layout, dx: &mut CpuStorage) -> Result<()> {
        let rows = rows(layout)?;
        on(DeviceLocation::Cpu, self.weight(), |w| cpu::add_product(dx, (dy, layout), w, rows))
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        forward(self, (x, layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, dy: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        backward(self, (dy, layout))
    }
}

fn forward<S: DeviceOps>(linear: &Linear, x: Operand<S>) -> Result<S> {
    let location = x.0.device().location();
    let rows = rows(x.1)?;
    let mut y = on(location, &linear.weight().t()?, |w| S::product(x, w, rows))?;
    if let Some(bias) = linear.bias() {
        on(
            location,
            bias,
            |bias| with_activation!("activations are", y.dtype(), E => S::add_bias::<E>(&mut y, bias)),
        )?;
    }
    Ok(y)
}

fn backward<S: DeviceOps>(linear: &Linear, dy: Operand<S>) -> Result<S> {
    let rows = rows(dy.1)?;
    on(dy.0.device().location(), linear.weight(), |w| S::product(dy, w, rows))
}

/// Returns the number of rows of an operand, … × width.
fn rows(operand: &Layout) -> Result<usize> {
    match operand.dims().split_last() {
        Some((_, outer)) => Ok(outer.iter().product()),
        None => bail!("an operand of a layer is a scalar, but it has rows"),
    }
}

/// Op on x: y = base(x).
pub(crate) struct Frozen(pub Arc<dyn FrozenLinear>);

impl Frozen {
    fn forward<S: DeviceOps>(&self, x: Operand<S>) -> Result<(S, Shape)> {
        let LayerDims { d_in, d_out } = self.0.dims();
        match x.1.dims().split_last() {
            Some((&last, outer)) if last == d_in => {
                Ok((S::base_forward(&*self.0, x)?, Shape::from([outer, &[d_out]].concat())))
            }
            _ => bail!("x is {:?}, but the last dimension of a layer's input is d_in = {d_in}", x.1.shape()),
        }
    }

    fn backward<S: DeviceOps>(&self, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = on(dy.device().location(), dy, |dy: Operand<S>| S::base_backward(&*self.0, dy))?;
        Ok(Some(tensor(dx, x.shape())))
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, layout))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward((x, layout))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_device_ops!(dy.device(), S => self.backward::<S>(x, &dy.contiguous()?))
    }
}
