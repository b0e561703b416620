//! [`KronForward`]: the call that never makes ΔW.

use burn::nn::Linear;
use burn::tensor::Tensor;
use kron_adapter::{Error, Result};
use kron_core::DropoutKey;

use crate::adapter::KronAdapter;

/// Forward of an adapted layer as one op; call it in the place of `forward`.
pub trait KronForward {
    /// Computes x·W + b + s·x·(A ⊗ (B·C))ᵀ, … × d_in to … × d_out. A layer without an adapter computes its own `forward`.
    ///
    /// # Panics
    /// As [`KronForward::try_forward_kron`] fails, as burn's own `forward` does.
    fn forward_kron<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.try_forward_kron(x, None).unwrap_or_else(|e| panic!("{e}"))
    }

    /// As [`KronForward::forward_kron`], with dropout on the adapter's input if a key is given.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::tensor::{Device, Tensor};
    /// use kron_burn::KronForward;
    ///
    /// let device = Device::flex();
    /// let layer = LinearConfig::new(96, 64).init(&device);
    /// let error = layer.try_forward_kron(Tensor::<2>::zeros([5, 95], &device), None).unwrap_err();
    /// assert_eq!(error.to_string(), "x is [5, 95], but the layer's d_in is 96");
    /// ```
    ///
    /// # Errors
    /// x has another width, dtype or device than the weight, the adapter belongs to a weight of another shape, or
    /// a key is given where burn's own ops compute.
    fn try_forward_kron<const D: usize>(&self, x: Tensor<D>, key: Option<DropoutKey>) -> Result<Tensor<D>>;
}

impl KronForward for Linear {
    fn try_forward_kron<const D: usize>(&self, x: Tensor<D>, key: Option<DropoutKey>) -> Result<Tensor<D>> {
        let (dims, [d_in, _]) = (x.dims(), self.weight.base().dims());
        if dims.last() != Some(&d_in) {
            return Err(Error::usage(format!("x is {dims:?}, but the layer's d_in is {d_in}")));
        }
        let Some(adapter) = self.weight.reparameterization::<KronAdapter>() else {
            return Ok(self.forward(x));
        };
        let (weight, bias) = (self.weight.base(), self.bias.as_ref().map(|bias| bias.val()));
        if D > 1 {
            return adapter.forward(x, weight, bias, key);
        }
        let y = adapter.forward(x.reshape([1, d_in]), weight, bias, key)?;
        let d_out = y.dims()[1];
        Ok(y.reshape([d_out; D]))
    }
}
