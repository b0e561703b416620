//! Layer normalisation.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::composed;
use super::slices::{floats, is_fusable, like, map_rows, read};
use super::vectors::sum;

/// Computes (x − mean)/√(variance + eps)·w + b over the last dimension.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    match is_fusable(&[x, weight, bias]) {
        true => x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps }),
        false => composed::layer_norm(x, weight, bias, eps),
    }
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// Returns the mean and 1/√(variance + eps) of a row.
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = sum(row) / n;
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
        let y = map_rows(
            [x],
            w.len(),
            #[inline(always)]
            |y, [x]| {
                let (mean, scale) = self.moments(x);
                for ((y, x), (w, b)) in y.iter_mut().zip(x).zip(w.iter().zip(b)) {
                    *y = (x - mean) * scale * w + b;
                }
            },
        );
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
        let dy = dy.contiguous()?;
        let (given, weight, dy) = (read(x)?, read(w)?, read(&dy)?);
        let (width, n) = (weight.len(), weight.len() as f32);
        let dx = |_| {
            let dx = map_rows(
                [&given, &dy],
                width,
                #[inline(always)]
                |dx, [x, dy]| {
                    let (mean, scale) = self.moments(x);
                    let (mut sum, mut along) = (0.0, 0.0);
                    for ((dx, x), (dy, w)) in dx.iter_mut().zip(x).zip(dy.iter().zip(&*weight)) {
                        *dx = dy * w;
                        sum += *dx;
                        along += *dx * (x - mean) * scale;
                    }
                    let (sum, along) = (sum / n, along / n);
                    dx.iter_mut()
                        .zip(x)
                        .for_each(|(dx, x)| *dx = scale * (*dx - sum - (x - mean) * scale * along));
                },
            );
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
