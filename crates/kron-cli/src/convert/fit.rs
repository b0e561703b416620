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
    /// Rows of A.
    pub a_out: usize,
    /// Columns of A.
    pub a_in: usize,
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
/// message lists the errors of all layers.
pub fn fit(adapter: &Adapter, options: FitOptions) -> Result<Fitted> {
    let FitOptions { a_out, a_in, rank, max_error } = options;
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
        let theta = algebra::fit(&delta.lora(Join::Up), Split { a_out, a_in }, rank).map_err(refused)?;
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
        let all = layers.iter().zip(&errors).map(|(layer, &error)| {
            format!("{} {}{}", layer.module(), short(error), if above(error) { "*" } else { "" })
        });
        return Err(Error::data(format!(
            "the nearest Kron-LoRA is not the adapter: of {} layers, {count} have a relative error above --max-error {max_error}, marked *: {}",
            layers.len(),
            all.collect::<Vec<_>>().join(", ")
        )));
    }
    Ok(Fitted { adapter: adapter.with_layers(layers)?, errors })
}
