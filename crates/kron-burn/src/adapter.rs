//! [`KronAdapter`]: θ on a weight of burn, and its two ways to compute.

use burn::backend::{Dispatch, DispatchDevice};
use burn::module::{Module, Param, Reparameterization};
use burn::tensor::{DType, Device, Tensor, TensorData};
use kron_adapter::{Error, Result};
use kron_core::{DropoutKey, KronOp, Theta};

use crate::dense::Merging;
use crate::op::{Call, KronBackend};
use crate::unfused;

/// Adapter on the weight of a linear layer.
///
/// θ is a parameter of the model like any other: optimizers, records and devices see it under the name
/// `MODULE.weight.kron.theta`. [`Adapters`](crate::Adapters) writes it to a file.
#[derive(Module, Debug)]
pub struct KronAdapter {
    /// θ, \[A | B | C\], float32.
    pub theta: Param<Tensor<1>>,
    #[module(skip)]
    merging: Merging,
}

impl KronAdapter {
    /// Makes an adapter with these factors.
    ///
    /// # Errors
    /// θ is of another shape than the op, or the transposed layer has no legal shape.
    pub fn new(theta: &Theta, op: KronOp, device: &Device) -> Result<Self> {
        if *theta.shape() != op.shape {
            return Err(Error::usage(format!("θ is of {}, but the op is of {}", theta.shape(), op.shape)));
        }
        let merging = Merging::new(op)?;
        let data = TensorData::new(theta.as_slice().to_vec(), [op.shape.params()]);
        let theta = Param::from_tensor(Tensor::from_data(data, (device, DType::F32)));
        Ok(Self { theta, merging })
    }

    /// Shape, scale and dropout.
    pub fn op(&self) -> &KronOp {
        &self.merging.op
    }

    /// Computes x·W + b and the adapter's output. x: … × d_in, W: d_in × d_out.
    pub(crate) fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        key: Option<DropoutKey>,
    ) -> Result<Tensor<D>> {
        let (op, theta) = (*self.op(), self.theta.val());
        check_weight(&op, weight.dims())?;
        let device = x.device().without_autodiff();
        let operands = [("the weight", weight.device()), ("θ", theta.device())];
        for (name, other) in operands.into_iter().chain(bias.iter().map(|b| ("the bias", b.device()))) {
            if other.clone().without_autodiff() != device {
                return Err(Error::usage(format!("x is on {device:?}, but {name} is on {other:?}")));
            }
        }
        if !is_fused(&device, weight.dtype()) {
            return forward_unfused(x, weight, bias, theta, Call { op, key });
        }
        let dtypes = [("the weight", weight.dtype())];
        for (name, dtype) in dtypes.into_iter().chain(bias.iter().map(|b| ("the bias", b.dtype()))) {
            if dtype != x.dtype() {
                return Err(Error::usage(format!("x is {:?}, but {name} is {dtype:?}", x.dtype())));
            }
        }
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        let (theta, call) = (theta.cast(DType::F32).into_dispatch(), Call { op, key });
        Ok(Tensor::from_dispatch(match bias {
            Some(bias) => Dispatch::kron_linear_bias(x, weight, bias.into_dispatch(), theta, call),
            None => Dispatch::kron_linear(x, weight, theta, call),
        }))
    }
}

/// Computes a layer by burn's ops.
fn forward_unfused<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    theta: Tensor<1>,
    call: Call,
) -> Result<Tensor<D>> {
    if call.key.is_some() {
        return Err(Error::usage(format!(
            "dropout has a key, but a {:?} weight on {:?} is computed by burn's ops, which have no mask of ours",
            weight.dtype(),
            weight.device()
        )));
    }
    let base = burn::tensor::module::linear(x.clone(), weight, bias);
    let dims = x.dims();
    let rows = dims[..D - 1].iter().product();
    if rows == 0 {
        return Ok(base);
    }
    let delta = unfused::output(x.reshape([rows, dims[D - 1]]), theta, &call.op);
    let shape = base.shape();
    Ok(base + delta.reshape(shape))
}

/// Returns `true` if kron-core computes an adapter on a weight of this dtype.
fn is_fused(device: &Device, dtype: DType) -> bool {
    let flex = matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_));
    flex && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

fn check_weight(op: &KronOp, dims: [usize; 2]) -> Result<()> {
    let (d_in, d_out) = (op.shape.d_in(), op.shape.d_out());
    if dims != [d_in, d_out] {
        let [rows, columns] = dims;
        return Err(Error::usage(format!(
            "the weight is {rows} × {columns}, but burn's weight for an adapter of {} is d_in × d_out = {d_in} × {d_out}",
            op.shape
        )));
    }
    Ok(())
}

impl Reparameterization for KronAdapter {
    const NAME: &'static str = "kron";

    /// Computes W + ΔWᵀ, for code that calls burn's own `forward`: correct, and dense.
    ///
    /// # Panics
    /// The base is not the d_in × d_out of the adapter; [`Kron::attach`](crate::Kron::attach) makes none such.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let (op, shape, theta) = (self.op(), base.shape(), self.theta.val());
        let dims = <[usize; 2]>::try_from(shape.as_slice()).unwrap_or_default();
        if let Err(e) = check_weight(op, dims) {
            panic!("{e}");
        }
        if is_fused(&base.device(), base.dtype()) {
            let theta = theta.cast(DType::F32).into_dispatch();
            return Tensor::from_dispatch(Dispatch::kron_merge(base.into_dispatch(), theta, self.merging));
        }
        let base = if matches!(base.dtype(), DType::QFloat(_)) { base.dequantize() } else { base };
        let delta = unfused::delta(theta, op, base.dtype());
        base + delta.reshape(shape)
    }
}
