//! Root-mean-square normalisation.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::composed;
use super::slices::{floats, is_fusable, like, map_rows, read};
use super::vectors::dot;

/// Computes x/√(mean(x²) + eps)·w over the last dimension.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    match is_fusable(&[x, weight]) {
        true => x.contiguous()?.apply_op2(weight, RmsNorm { eps }),
        false => composed::rms_norm(x, weight, eps),
    }
}

/// Returns the gradient of x in [`rms_norm`], for float32 tensors on the CPU.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> Result<Tensor> {
    RmsNorm { eps }.dx(x, weight, &dy.contiguous()?)
}

/// Computes [`rms_norm`] of each head of x, … × (heads·width), with one weight, width.
///
/// # Errors
/// The width does not divide the last dimension, or candle fails.
pub(in crate::models) fn head_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let heads = x.reshape(((), weight.elem_count()))?;
    rms_norm(&heads, weight, eps)?.reshape(x.shape())
}

/// Returns the gradient of x in [`head_norm`], for float32 tensors on the CPU.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn head_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dy: &Tensor,
) -> Result<Tensor> {
    // Rows are as long as the weight, whatever the last dimension is.
    rms_norm_backward(x, weight, eps, dy)
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    fn dx(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (given, w, dy) = (read(x)?, read(weight)?, read(dy)?);
        let dx = map_rows(
            [&given, &dy],
            w.len(),
            #[inline(always)]
            |dx, [x, dy]| {
                let scale = self.scale(x);
                dx.iter_mut().zip(dy).zip(&*w).for_each(|((dx, dy), w)| *dx = dy * w);
                let along = dot(dx, x) * scale * scale / w.len() as f32;
                dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = scale * (*dx - x * along));
            },
        );
        like(dx, x)
    }

    /// Returns 1/√(mean(x²) + eps).
    #[inline(always)]
    fn scale(&self, row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (floats(x, layout)?, floats(w, w_layout)?);
        let y = map_rows(
            [x],
            w.len(),
            #[inline(always)]
            |y, [x]| {
                let scale = self.scale(x);
                y.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = x * scale * w);
            },
        );
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let dx = x.track_op().then(|| self.dx(x, w, &dy)).transpose()?;
        let (given, dy) = (read(x)?, read(&dy)?);
        let width = w.elem_count();
        // One thread sums row by row, so that the order of the sums is fixed.
        let dw = |_| {
            let mut dw = vec![0.0; width];
            for (x, dy) in given.chunks(width).zip(dy.chunks(width)) {
                let scale = self.scale(x);
                dw.iter_mut().zip(x).zip(dy).for_each(|((dw, x), dy)| *dw += dy * x * scale);
            }
            like(dw, w)
        };
        let dw = w.track_op().then_some(()).map(dw).transpose()?;
        Ok((dx, dw))
    }
}
