//! The operations out of candle's own, for every device and type. Statistics and exponentials are float32.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops;

use super::attention_mask::AttentionMask;
use super::heads::Heads;
use crate::models::rope::Rotation;

/// Computes x·Φ(x), with the error function.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(x.dtype())
}

/// Computes gelu(a)·b of the halves of the last dimension, a before b.
pub(super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    gelu(&x.narrow(D::Minus1, 0, half)?)? * x.narrow(D::Minus1, half, half)?
}

/// Computes silu(gate)·up.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// Computes (x − mean)/√(variance + eps)·w + b over the last dimension.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    ops::layer_norm_slow(x, weight, bias, eps)
}

/// Computes x/√(mean(x²) + eps)·w over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    ops::rms_norm_slow(x, weight, eps)
}

/// Computes softmax(q·kᵀ/√width + mask)·v of each head; see [`attention`](super::attention()).
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    rotation: Option<&Rotation>,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let ((n, queries, _), keys, width) = (q.dims3()?, k.dim(1)?, heads.width);
    let split = |x: &Tensor, len, count| x.reshape((n, len, count, width))?.transpose(1, 2)?.contiguous();
    let [mask, positions] = mask.tensors(queries, keys, q.device())?;
    let turn = |x: Tensor, positions: &Tensor| match rotation {
        Some(rotation) => rotation.apply(&x, positions),
        None => Ok(x),
    };
    // Each key and value head is repeated for the consecutive query heads that share it.
    let repeat = |x: Tensor| {
        x.unsqueeze(2)?.broadcast_as((n, heads.keys, heads.shared(), keys, width))?.reshape((
            n,
            heads.queries,
            keys,
            width,
        ))
    };
    let q = turn(split(q, queries, heads.queries)?, &positions.narrow(1, keys - queries, queries)?)?;
    let k = repeat(turn(split(k, keys, heads.keys)?, positions)?)?;
    let v = repeat(split(v, keys, heads.keys)?)?;
    let scores = q.matmul(&k.transpose(2, 3)?)?;
    let weights = softmax(&scores, heads.scale(), mask)?;
    weights.matmul(&v.contiguous()?)?.transpose(1, 2)?.reshape((n, queries, heads.queries * width))
}

/// Computes the softmax of scale·scores + mask over the last dimension; a mask of −∞ gives exactly 0.
fn softmax(scores: &Tensor, scale: f32, mask: &Tensor) -> Result<Tensor> {
    let masked = (scores.to_dtype(DType::F32)? * f64::from(scale))?.broadcast_add(mask)?;
    // The highest score cancels out, so it needs no gradient.
    let powers = masked.broadcast_sub(&masked.max_keepdim(D::Minus1)?.detach())?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?.to_dtype(scores.dtype())
}

/// Computes −log p(target) of each row of logits, m × vocabulary.
pub(super) fn output_loss(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    ops::log_softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?.gather(&targets, 1)?.squeeze(1)?.neg()
}
