//! LoRA to Kron-LoRA: the nearest one, which is another adapter.

use kron_adapter::algebra::{self, Delta, Join};
use kron_adapter::{Adapter, Layer};
use kron_core::Outer;
use rayon::prelude::*;

use crate::table::short;
use crate::{Error, Result, watch};

/// What to fit, and how much may be lost.
#[derive(Clone, Copy)]
pub struct Wish {
    pub a_out: usize,
    pub a_in: usize,
    pub rank: usize,
    pub max_error: f64,
}

pub struct Fitted {
    pub adapter: Adapter,
    /// ‖ΔW' − ΔW‖ / ‖ΔW‖ of each layer.
    pub errors: Vec<f64>,
}

/// Fits every layer.
///
/// # Errors
/// A layer that is no LoRA, that the wish does not divide, or whose error is
/// above the largest; then all errors are in the message.
pub fn fit(adapter: &Adapter, wish: Wish) -> Result<Fitted> {
    let Wish { a_out, a_in, rank, max_error } = wish;
    if max_error.is_nan() || max_error < 0.0 {
        return Err(Error::usage(format!("--max-error is {max_error}, but an error is at least 0")));
    }
    let bar = watch::items(adapter.layers().len(), "layers");
    let fitted = adapter.layers().par_iter().map(|layer| {
        if layer.shape().outer() != Outer::One {
            return Err(Error::usage(format!(
                "layer {} ({}) is no LoRA, and --fit replaces LoRA layers",
                layer.module(),
                layer.shape()
            )));
        }
        let refused =
            |e: kron_adapter::Error| Error::usage(format!("layer {} cannot be fitted: {e}", layer.module()));
        let delta = Delta::new(layer);
        let theta = algebra::fit(&delta.lora(Join::Up), a_out, a_in, rank).map_err(refused)?;
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
