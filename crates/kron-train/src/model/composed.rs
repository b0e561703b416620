//! GELU, layer normalisation and masked softmax out of candle's own ops, for every device and type.
//! Statistics and exponentials are float32.

use candle_core::{D, DType, Result, Tensor};

/// Computes x·Φ(x), with the error function.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(x.dtype())
}

/// Computes (x − mean)/√(variance + eps)·w + b over the last dimension.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    candle_nn::ops::layer_norm_slow(x, weight, bias, eps)
}

/// Computes the softmax of scale·scores + mask over the last dimension; a mask of −∞ gives exactly 0.
pub(super) fn softmax(scores: &Tensor, scale: f32, mask: &Tensor) -> Result<Tensor> {
    let masked = (scores.to_dtype(DType::F32)? * f64::from(scale))?.broadcast_add(mask)?;
    // The highest score cancels out, so it needs no gradient.
    let powers = masked.broadcast_sub(&masked.max_keepdim(D::Minus1)?.detach())?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?.to_dtype(scores.dtype())
}
