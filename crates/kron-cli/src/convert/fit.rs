//! The nearest Kron-LoRA to a LoRA, a lossy replacement.

use kron_adapter::algebra::{self, Delta, Join};
use kron_adapter::{Adapter, Layer};
use kron_core::{Outer, Split};
use rayon::prelude::*;

use crate::table::short;
use crate::{Error, Result, progress};

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
}

/// Fits every layer.
///
/// # Errors
/// A layer is not a LoRA, is not divided by the split, or has too large an error. In the last case the
/// message lists the largest errors.
pub fn fit(adapter: &Adapter, options: FitOptions) -> Result<Fitted> {
    let FitOptions { split, rank, max_error } = options;
    if max_error.is_nan() || max_error < 0.0 {
        return Err(Error::usage(format!("--max-error is {max_error}, but an error is at least 0")));
    }
    let bar = progress::items(adapter.layers().len(), "layers");
    let fitted = adapter.layers().par_iter().map(|layer| {
        if layer.shape().outer() != Outer::One {
            return Err(Error::usage(format!(
                "layer {} ({}) is not a LoRA, and --fit replaces LoRA layers",
                layer.module(),
                layer.shape()
            )));
        }
        let refused =
            |e: kron_adapter::Error| Error::usage(format!("layer {} cannot be fitted: {e}", layer.module()));
        let delta = Delta::new(layer);
        let theta = algebra::fit(&delta.lora(Join::Up), split, rank).map_err(refused)?;
        let layer = Layer::new(layer.module(), layer.scaling(), theta).map_err(refused)?;
        let error = delta.relative_distance(&Delta::new(&layer)).map_err(refused)?;
        bar.inc(1);
        Ok((layer, error))
    });
    let (layers, errors): (Vec<_>, Vec<_>) = fitted.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    bar.finish_and_clear();
    let above = |error: f64| error.is_nan() || error > max_error;
    let count = errors.iter().filter(|error| above(**error)).count();
    if count > 0 {
        return Err(Error::data(format!(
            "the nearest Kron-LoRA is not the adapter: of {} layers, {count} have a relative error above --max-error {max_error}; the largest are {}",
            layers.len(),
            worst(&layers, &errors, count)
        )));
    }
    Ok(Fitted { adapter: adapter.with_layers(layers)?, errors })
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
