//! Fused GELU, layer normalisation and masked softmax.
//!
//! candle has these without a backward pass, or with one that reads its operands a dozen times. Here each is one op
//! for float32 on the CPU, with rows spread over rayon's threads. Other devices and types fall back to
//! [`composed`](super::composed).

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::attention_mask::AttentionMask;
use super::composed;

/// Smallest number of rows of one task.
const ROWS: usize = 32;

/// Returns `true` if the fused ops support a tensor.
fn is_fusable(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Returns the elements of a contiguous float32 operand.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("an operand has strides {:?}, but it is contiguous", layout.stride()),
    }
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn like(values: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

/// Computes x·Φ(x), with the error function.
///
/// # Errors
/// candle fails.
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_fusable(x) { x.contiguous()?.apply_op1(Gelu) } else { composed::gelu(x) }
}

struct Gelu;

/// Returns Φ(x), by Abramowitz and Stegun 7.1.26 with an error below 1.5e-7, and exp(−x²/2).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let gauss = (-0.5 * x * x).exp();
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    let poly =
        t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    let upper = 0.5 * poly * gauss;
    (if x < 0.0 { upper } else { 1.0 - upper }, gauss)
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let y = x.par_iter().with_min_len(4096).map(|&x| x * normal(x).0).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        const DENSITY: f32 = 0.398_942_3;
        let (mut dx, given) = (to_vec(dy)?, to_vec(x)?);
        dx.par_iter_mut().zip(&given).with_min_len(4096).for_each(|(dx, &x)| {
            let (phi, gauss) = normal(x);
            *dx *= phi + x * DENSITY * gauss;
        });
        Ok(Some(like(dx, x)?))
    }
}

/// Computes (x − mean)/√(variance + eps)·w + b over the last dimension.
///
/// # Errors
/// candle fails.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    match is_fusable(x) {
        true => x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps }),
        false => composed::layer_norm(x, weight, bias, eps),
    }
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// Returns the mean and 1/√(variance + eps) of a row.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = row.iter().sum::<f32>() / n;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (floats(x, layout)?, floats(w, w_layout)?, floats(b, b_layout)?);
        let width = w.len();
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(ROWS).for_each(|(y, x)| {
            let (mean, scale) = self.moments(x);
            for ((y, x), (w, b)) in y.iter_mut().zip(x).zip(w.iter().zip(b)) {
                *y = (x - mean) * scale * w + b;
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (given, weight, dy) = (to_vec(x)?, to_vec(w)?, to_vec(dy)?);
        let (width, n) = (weight.len(), weight.len() as f32);
        let dx = |_| {
            let mut dx = vec![0.0; given.len()];
            let rows = dx.par_chunks_mut(width).zip(given.par_chunks(width)).zip(dy.par_chunks(width));
            rows.with_min_len(ROWS).for_each(|((dx, x), dy)| {
                let (mean, scale) = self.moments(x);
                let (mut sum, mut along) = (0.0, 0.0);
                for ((dx, x), (dy, w)) in dx.iter_mut().zip(x).zip(dy.iter().zip(&weight)) {
                    *dx = dy * w;
                    sum += *dx;
                    along += *dx * (x - mean) * scale;
                }
                let (sum, along) = (sum / n, along / n);
                dx.iter_mut()
                    .zip(x)
                    .for_each(|(dx, x)| *dx = scale * (*dx - sum - (x - mean) * scale * along));
            });
            like(dx, x)
        };
        // One thread sums row by row, so that the order of the sums is fixed.
        let parameters = |_| {
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            for (x, dy) in given.chunks(width).zip(dy.chunks(width)) {
                let (mean, scale) = self.moments(x);
                for (((dw, db), x), dy) in dw.iter_mut().zip(&mut db).zip(x).zip(dy) {
                    *dw += dy * (x - mean) * scale;
                    *db += dy;
                }
            }
            Ok::<_, candle_core::Error>((like(dw, w)?, like(db, b)?))
        };
        let dx = x.track_op().then_some(()).map(dx).transpose()?;
        let (dw, db) = w.track_op().then_some(()).map(parameters).transpose()?.unzip();
        Ok((dx, dw, db))
    }
}

/// Computes the masked softmax of scale·scores over the keys; scores are n × heads × queries × keys.
///
/// # Errors
/// candle fails.
pub(super) fn softmax(scores: &Tensor, scale: f32, mask: &AttentionMask) -> Result<Tensor> {
    if is_fusable(scores) {
        return scores.contiguous()?.apply_op1(Softmax { scale, mask: mask.without_tensor() });
    }
    let (.., queries, keys) = scores.dims4()?;
    composed::softmax(scores, scale, mask.tensor(queries, keys, scores.device())?)
}

struct Softmax {
    scale: f32,
    mask: AttentionMask,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "masked-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (scores, (_, heads, queries, keys)) = (floats(storage, layout)?, layout.shape().dims4()?);
        let mut weights = vec![0.0; scores.len()];
        let rows = weights.par_chunks_mut(keys).zip(scores.par_chunks(keys)).enumerate();
        rows.with_min_len(ROWS).for_each(|(row, (weights, scores))| {
            let visible = self.mask.visible_keys(row / (heads * queries), row % queries);
            let highest = scores[..visible].iter().copied().fold(f32::MIN, f32::max);
            let mut sum = 0.0;
            for (weight, score) in weights[..visible].iter_mut().zip(scores) {
                *weight = ((score - highest) * self.scale).exp();
                sum += *weight;
            }
            weights[..visible].iter_mut().for_each(|weight| *weight /= sum);
        });
        Ok((CpuStorage::F32(weights), layout.shape().clone()))
    }

    fn bwd(&self, scores: &Tensor, weights: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let keys = scores.dim(3)?;
        let (weights, mut dx) = (to_vec(weights)?, to_vec(dy)?);
        dx.par_chunks_mut(keys).zip(weights.par_chunks(keys)).with_min_len(ROWS).for_each(|(dx, weights)| {
            let mean: f32 = dx.iter().zip(weights).map(|(d, p)| d * p).sum();
            dx.iter_mut().zip(weights).for_each(|(d, p)| *d = self.scale * p * (*d - mean));
        });
        Ok(Some(like(dx, scores)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::body::Attention;
    use candle_core::{D, Device, Var};

    fn var(shape: &[usize], seed: u64) -> Var {
        let shape = Shape::from(shape);
        let values =
            (0..shape.elem_count() as u64).map(|i| ((i * 7919 + seed * 131) % 997) as f32 / 250.0 - 2.0);
        let tensor = Tensor::from_iter(values, &Device::Cpu).and_then(|t| t.reshape(shape));
        Var::from_tensor(&tensor.expect("values")).expect("a variable")
    }

    /// Compares values and gradients of two ways to compute the same function.
    fn agree(vars: &[&Var], ours: &dyn Fn() -> Result<Tensor>, theirs: &dyn Fn() -> Result<Tensor>) {
        let run = |f: &dyn Fn() -> Result<Tensor>| -> Result<Vec<Tensor>> {
            let y = f()?;
            let grads = (y.sqr()? + y.sin()?)?.sum_all()?.backward()?;
            let grads = vars.iter().map(|v| grads.get(v).expect("a gradient").clone());
            Ok([y.clone()].into_iter().chain(grads).collect())
        };
        for (i, (a, b)) in run(ours).expect("ours").iter().zip(run(theirs).expect("theirs")).enumerate() {
            let largest = |t: Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
            let (difference, size) =
                (largest((a - &b).expect("sizes")).expect("max"), largest(b).expect("max"));
            assert!(size > 0.01 && difference < 2e-5 * size.max(1.0), "result {i}: {difference} of {size}");
        }
    }

    #[test]
    fn gelu_is_candles() {
        let x = var(&[7, 33], 1);
        // candle's own derivative has constants of six digits; through erf it is exact.
        let theirs = || {
            let phi = ((x.as_tensor() / 2f64.sqrt())?.erf()? + 1.0)? * 0.5;
            x.as_tensor() * phi?
        };
        agree(&[&x], &|| gelu(&x), &theirs);
        agree(&[&x], &|| composed::gelu(&x), &theirs);
    }

    #[test]
    fn layer_norm_is_the_long_form() {
        let (x, w, b) = (var(&[3, 5, 24], 2), var(&[24], 3), var(&[24], 4));
        let theirs = || candle_nn::ops::layer_norm_slow(&x, &w, &b, 1e-5);
        agree(&[&x, &w, &b], &|| layer_norm(&x, &w, &b, 1e-5), &theirs);
    }

    /// Half precision takes the composed ops, which compute in float32: the only loss is the rounding of the
    /// operands and of the result.
    #[test]
    fn half_precision_loses_its_roundings_alone() -> Result<()> {
        let (x, w, b) = (var(&[2, 3, 4, 4], 6), var(&[4], 7), var(&[4], 8));
        let mask = AttentionMask::new(&[3, 4], Attention::Causal);
        type Of<'a> = &'a dyn Fn(&Var) -> Result<Tensor>;
        type Way<'a> = &'a dyn Fn(Of) -> Result<Tensor>;
        let ways: [Way; 3] =
            [&|of| gelu(&of(&x)?), &|of| layer_norm(&of(&x)?, &of(&w)?, &of(&b)?, 1e-5), &|of| {
                softmax(&of(&x)?, 0.7, &mask)
            }];
        for (i, way) in ways.into_iter().enumerate() {
            for (dtype, roundoff) in [(DType::F16, 4.9e-4), (DType::BF16, 3.9e-3)] {
                let half = way(&|var| var.to_dtype(dtype))?;
                assert_eq!(half.dtype(), dtype);
                // Both take operands rounded to the half type.
                let full = way(&|var| var.to_dtype(dtype)?.to_dtype(DType::F32))?;
                let difference =
                    (half.to_dtype(DType::F32)? - &full)?.abs()?.max_all()?.to_scalar::<f32>()?;
                let size = full.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(
                    difference > 0.0 && difference <= 4.0 * roundoff * size,
                    "op {i}, {dtype:?}: {difference} of {size}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn softmax_gives_masked_keys_no_weight() {
        let x = var(&[2, 3, 4, 4], 5);
        for attention in [Attention::Bidirectional, Attention::Causal] {
            let lens = vec![3, 4];
            let added = (0..96).map(|i| {
                let (text, query, key) = (i / 48, i / 4 % 4, i % 4);
                let visible = key < lens[text] && (attention == Attention::Bidirectional || key <= query);
                if visible { 0f32 } else { -1e9 }
            });
            let added =
                Tensor::from_iter(added, &Device::Cpu).and_then(|t| t.reshape((2, 3, 4, 4))).expect("mask");
            let theirs = || candle_nn::ops::softmax(&((x.as_tensor() * 0.7)? + &added)?, D::Minus1);
            let mask = AttentionMask::new(&lens, attention);
            agree(&[&x], &|| softmax(&x, 0.7, &mask), &theirs);
            let composed = || composed::softmax(&x, 0.7, mask.tensor(4, 4, &Device::Cpu)?);
            agree(&[&x], &composed, &theirs);
            let masked = composed().and_then(|weights| weights.narrow(0, 0, 1)?.narrow(3, 3, 1)?.max_all());
            assert_eq!(masked.and_then(|t| t.to_scalar::<f32>()).expect("a weight"), 0.0);
        }
    }
}
