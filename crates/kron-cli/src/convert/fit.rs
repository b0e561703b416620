//! The nearest Kron-LoRA to a LoRA, a lossy replacement.

use kron_adapter::algebra::{self, Delta, Fit, Join};
use kron_adapter::limits::{Cost, Limits, shares};
use kron_adapter::{Adapter, Layer};
use kron_core::{KronShape, LayerDims, Outer, Split};

use crate::batches::in_batches;
use crate::table::short;
use crate::{Error, Result, progress};

/// A fit is asked for by name, so that it may take so many times the work of a file.
const WORK: u64 = 64;

/// Shape to fit, and the largest error to accept.
#[derive(Clone, Copy)]
pub struct FitOptions {
    /// Sizes of A.
    pub split: Split,
    /// Rank of B·C.
    pub rank: usize,
    /// Largest ‖ΔW' − ΔW‖ / ‖ΔW‖ of a layer.
    pub max_error: f64,
}

/// The fitted adapter and its errors.
pub struct Fitted {
    /// The adapter.
    pub adapter: Adapter,
    /// ‖ΔW' − ΔW‖ / ‖ΔW‖ of each layer.
    pub errors: Vec<f64>,
    /// Note on fits that ended early.
    pub note: Option<String>,
}

/// Fits every layer.
///
/// # Errors
/// A layer is not a LoRA, is not divided by the split, takes more memory or work than the limits leave, or
/// has too large an error. In the last case the message lists the largest errors.
pub fn fit(adapter: &Adapter, limits: &Limits, options: FitOptions) -> Result<Fitted> {
    let FitOptions { split, rank, max_error } = options;
    if max_error.is_nan() || max_error < 0.0 {
        return Err(Error::usage(format!("--max-error is {max_error}, but an error is at least 0")));
    }
    let costs: Vec<_> = adapter.layers().iter().map(|layer| cost(layer, split, rank)).collect();
    let mut made = limits.bytes.clone();
    for (layer, cost) in adapter.layers().iter().zip(&costs) {
        if layer.shape().outer() != Outer::One {
            return Err(Error::usage(format!(
                "layer {} ({}) is not a LoRA, and --fit replaces LoRA layers",
                layer.module(),
                layer.shape()
            )));
        }
        limits.bytes.check(format_args!("fitting layer {}", layer.module()), cost.bytes)?;
        made.spend(
            format_args!("the factors of layer {}", layer.module()),
            fitted_bytes(layer, split, rank),
        )?;
    }
    let work: Vec<u128> = costs.iter().map(|cost| cost.work).collect();
    let work = shares(limits.work.left().saturating_mul(WORK), &work);
    let jobs: Vec<_> = adapter.layers().iter().zip(costs).zip(work).collect();
    let bar = progress::items(jobs.len(), "layers");
    let fitted = in_batches(
        &jobs,
        |((_, cost), _)| cost.bytes,
        limits.bytes.left(),
        |&((layer, _), work)| {
            let fitted = fit_layer(layer, split, rank, work);
            bar.inc(1);
            fitted.map_err(|e| Error::usage(format!("layer {} cannot be fitted: {e}", layer.module())))
        },
    );
    let fitted = fitted.into_iter().collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    let early = fitted.iter().filter(|(_, _, converged)| !converged).count();
    let note = (early > 0).then(|| {
        format!(
            "the fit of {early} layers ended with the work that the file may take, before its error stayed"
        )
    });
    let (layers, errors): (Vec<_>, Vec<_>) =
        fitted.into_iter().map(|(layer, error, _)| (layer, error)).unzip();
    let above = |error: f64| error.is_nan() || error > max_error;
    let count = errors.iter().filter(|error| above(**error)).count();
    if count > 0 {
        return Err(Error::data(format!(
            "the nearest Kron-LoRA is not the adapter: of {} layers, {count} have a relative error above --max-error {max_error}; the largest are {}",
            layers.len(),
            worst(&layers, &errors, count)
        )));
    }
    Ok(Fitted { adapter: adapter.with_layers(layers)?, errors, note })
}

/// Returns the cost of a fit and of its error.
fn cost(layer: &Layer, split: Split, rank: usize) -> Cost {
    let (lora, fit) = (layer.shape(), Fit::cost(layer.shape(), split, rank));
    let Ok(fitted) = fitted_shape(layer, split, rank) else { return fit };
    let error = Delta::norm_cost(lora).then(Delta::norm_cost(&fitted)).then(Delta::inner_cost(lora, &fitted));
    fit.then(error)
}

fn fitted_shape(layer: &Layer, split: Split, rank: usize) -> kron_core::Result<KronShape> {
    let lora = layer.shape();
    KronShape::kron(LayerDims { d_out: lora.d_out(), d_in: lora.d_in() }, split, rank)
}

/// Bytes of the fitted factors; a shape that is refused has none.
fn fitted_bytes(layer: &Layer, split: Split, rank: usize) -> u128 {
    fitted_shape(layer, split, rank).map_or(0, |shape| 4 * shape.params() as u128)
}

/// Fits one layer; returns it, its error, and whether more work would not change it.
fn fit_layer(
    layer: &Layer,
    split: Split,
    rank: usize,
    work: u128,
) -> kron_adapter::Result<(Layer, f64, bool)> {
    let delta = Delta::new(layer);
    let Fit { theta, converged } = algebra::fit(&delta.lora(Join::Up), split, rank, work)?;
    let layer = Layer::new(layer.module(), layer.scaling(), theta)?;
    let error = delta.relative_distance(&Delta::new(&layer))?;
    Ok((layer, error, converged))
}

/// Lists the largest errors of those above the limit, the largest first.
fn worst(layers: &[Layer], errors: &[f64], above: usize) -> String {
    const LISTED: usize = 3;
    let mut order: Vec<usize> = (0..layers.len()).collect();
    // NaN is above all numbers.
    order.sort_by(|&i, &j| errors[j].abs().total_cmp(&errors[i].abs()));
    let listed = order.into_iter().take(above.min(LISTED));
    let texts = listed.map(|i| format!("{} of {}", short(errors[i]), layers[i].module()));
    texts.collect::<Vec<_>>().join(", ")
}
