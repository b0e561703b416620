//! [`Norm`]: a layer norm with its parameters.

use candle_core::{Result, Tensor};

use super::ops::layer_norm;

/// Weight and bias of a layer norm, and the term added to the variance.
#[derive(Debug)]
pub(super) struct Norm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub eps: f32,
}

impl Norm {
    /// Normalises the last dimension of x.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
