//! Cross-entropy of the next token, together with the product that makes the logits.

use std::sync::{Arc, OnceLock};

use crate::{FrozenLinear, KronLinear, LayerDims};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed;
use super::exp::exp;
use super::slices::{is_fusable, like};
use super::vectors::{greatest, sum, vectorised};

/// Largest number of logits at a time, 128 MiB.
const LOGITS: usize = 1 << 25;

/// Computes −log p(target) of each row of hidden, m × width, with the logits of `output`.
///
/// The logits of a few rows are made at a time and not kept: while they are at hand, the gradient with respect to
/// hidden is computed from them. An output layer that is trained or has an adapter takes candle's own ops, which keep
/// them.
///
/// # Errors
/// The shapes do not fit, a target exceeds the vocabulary, or candle fails.
pub(in crate::models) fn output_loss(
    hidden: &Tensor,
    output: &KronLinear,
    targets: &[u32],
) -> Result<Tensor> {
    output_loss_within(LOGITS, hidden, output, targets)
}

/// Computes [`output_loss`] with at most `limit` logits at a time, but at least one row.
pub(super) fn output_loss_within(
    limit: usize,
    hidden: &Tensor,
    output: &KronLinear,
    targets: &[u32],
) -> Result<Tensor> {
    let base = match output.base() {
        Some(base) if output.deltas().is_empty() && is_fusable(&[hidden]) => base,
        _ => return composed::output_loss(&output.forward_with(hidden, None)?, targets),
    };
    let (rows, vocabulary) = (hidden.dims2()?.0, base.dims().d_out);
    if rows != targets.len() || targets.iter().any(|&target| target as usize >= vocabulary) {
        bail!("{} targets are given for {rows} rows over {vocabulary} token ids", targets.len());
    }
    let (targets, trains) = (targets.to_vec(), hidden.track_op());
    let rows = (limit / vocabulary.max(1)).max(1);
    hidden.contiguous()?.apply_op1(OutputLoss { base, targets, rows, trains, gradient: OnceLock::new() })
}

struct OutputLoss {
    base: Arc<dyn FrozenLinear>,
    targets: Vec<u32>,
    /// Number of rows whose logits are made at a time.
    rows: usize,
    /// `true` if the gradient of hidden will be needed.
    trains: bool,
    /// Gradient of each row's loss with respect to its hidden state, m × width.
    gradient: OnceLock<Vec<f32>>,
}

impl CustomOp1 for OutputLoss {
    fn name(&self) -> &'static str {
        "output-loss"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let LayerDims { d_out: vocabulary, d_in: width } = self.base.dims();
        let (mut losses, mut gradient) = (vec![0.0; self.targets.len()], Vec::new());
        for (i, (targets, losses)) in
            self.targets.chunks(self.rows).zip(losses.chunks_mut(self.rows)).enumerate()
        {
            let start = layout.start_offset() + i * self.rows * width;
            let rows = Layout::contiguous_with_offset((targets.len(), width), start);
            let CpuStorage::F32(mut logits) = self.base.cpu_forward(hidden, &rows)? else {
                bail!("the output of {:?} is not float32", self.base);
            };
            let each = logits.par_chunks_mut(vocabulary).zip(losses).zip(targets);
            each.for_each(|((logits, loss), &target)| *loss = vectorised!(row_loss(logits, target as usize)));
            if self.trains {
                let rows = Layout::contiguous((targets.len(), vocabulary));
                let part = self.base.cpu_backward(&CpuStorage::F32(logits), &rows)?;
                gradient.extend_from_slice(part.as_slice()?);
            }
        }
        let rows = losses.len();
        match self.gradient.set(gradient) {
            Ok(()) => Ok((CpuStorage::F32(losses), Shape::from(rows))),
            Err(_) => bail!("a loss ran twice, but it is made for one forward pass"),
        }
    }

    fn bwd(&self, hidden: &Tensor, _: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradient.get() else {
            bail!("backward of a loss that has not run forward")
        };
        let width = hidden.dim(1)?;
        let mut dx = gradient.clone();
        for (dx, scale) in dx.chunks_mut(width).zip(dloss.to_vec1::<f32>()?) {
            dx.iter_mut().for_each(|dx| *dx *= scale);
        }
        like(dx, hidden).map(Some)
    }
}

/// Returns −log p(target), and replaces the logits by its gradient, p − onehot(target).
#[inline(always)]
fn row_loss(logits: &mut [f32], target: usize) -> f32 {
    let highest = greatest(logits);
    let chosen = logits[target] - highest;
    logits.iter_mut().for_each(|value| *value = exp(*value - highest));
    let sum = sum(logits);
    let scale = 1.0 / sum;
    logits.iter_mut().for_each(|value| *value *= scale);
    logits[target] -= 1.0;
    sum.ln() - chosen
}
