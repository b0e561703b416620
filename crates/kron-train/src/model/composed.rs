//! The ops of [`fused`](super::fused) out of candle's own, for every device and
//! type of activations. Statistics and exponentials are float32.

use candle_core::{D, DType, Result, Tensor};

/// x·Φ(x), with the error function.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(x.dtype())
}

/// (x − mean)/√(variance + eps)·w + b over the last dimension.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    candle_nn::ops::layer_norm_slow(x, weight, bias, eps)
}

/// Softmax of scale·scores + mask over the last dimension; a mask of −∞ is a share of exactly 0.
pub(super) fn softmax(scores: &Tensor, scale: f32, mask: &Tensor) -> Result<Tensor> {
    let masked = (scores.to_dtype(DType::F32)? * f64::from(scale))?.broadcast_add(mask)?;
    // The highest score cancels out, and so does its gradient.
    let powers = masked.broadcast_sub(&masked.max_keepdim(D::Minus1)?.detach())?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?.to_dtype(scores.dtype())
}
