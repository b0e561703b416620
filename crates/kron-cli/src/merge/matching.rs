//! Which tensor each layer of the adapter belongs to; what belongs to none is an error.

use std::collections::HashMap;

use kron_adapter::{Adapter, Layer};
use kron_core::Dtype;

use super::base::{Base, Slot};
use super::fold::Fold;
use crate::module_names::similar;
use crate::{Error, Result};

/// How many modules an error lists.
const LISTED: usize = 3;
/// Modules whose weights a model ties to each other.
const TIED: [&str; 4] = ["lm_head", "embed_tokens", "wte", "word_embeddings"];

/// What is folded into which tensor.
pub struct Folds(HashMap<(usize, usize), Fold>);

impl Folds {
    /// Finds every layer's tensor.
    ///
    /// # Errors
    /// Layers that match nothing, with the nearest names; weights that are
    /// tied, stacked, of another shape or of a dtype that cannot be added to.
    pub fn new(base: &Base, adapter: &Adapter) -> Result<Self> {
        let unmatched: Vec<&str> = adapter
            .layers()
            .iter()
            .map(Layer::module)
            .filter(|module| base.find(&weight(module)).is_none())
            .collect();
        if !unmatched.is_empty() {
            return Err(no_match(base, &unmatched));
        }
        let mut folds = HashMap::new();
        for layer in adapter.layers() {
            let Some(place) = base.find(&weight(layer.module())) else { continue };
            folds.insert(place, fold(base, layer, base.slot(place))?);
        }
        Ok(Self(folds))
    }

    /// What is folded into each tensor of a shard, by its place there.
    pub fn of(&self, shard: usize) -> HashMap<usize, &Fold> {
        self.0.iter().filter(|((s, _), _)| *s == shard).map(|(&(_, slot), fold)| (slot, fold)).collect()
    }
}

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

fn fold(base: &Base, layer: &Layer, slot: &Slot) -> Result<Fold> {
    let (module, shape) = (layer.module(), layer.shape());
    let refused = |why: String| Error::data(format!("{}: {} {why}", base.path(), slot.name));
    if let Some(config) = &base.config
        && TIED.contains(&last(module))
        && config.tied()?
    {
        return Err(refused("is tied: input embedding and output head are one tensor, and folding into it would change both; untie them first (tie_word_embeddings)".into()));
    }
    let dtype = match slot.dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::Bf16,
        other => {
            return Err(refused(format!(
                "is {other}, but a weight that can be added to is F32, F16 or BF16"
            )));
        }
    };
    let transposed = base.transposed(module);
    let stored = if transposed { [shape.d_in(), shape.d_out()] } else { [shape.d_out(), shape.d_in()] };
    if slot.shape.len() > 2 {
        return Err(refused(format!(
            "is stacked, {:?}: an adapter is for one matrix, and which of them it means is not said",
            slot.shape
        )));
    }
    if slot.shape != stored {
        let hint = if slot.shape == [stored[1], stored[0]] { transposed_hint(base) } else { "" };
        return Err(refused(format!(
            "is {:?}, but the adapter's layer, {}, needs {stored:?}{hint}",
            slot.shape, shape
        )));
    }
    Fold::new(layer, dtype, transposed).map_err(Into::into)
}

fn transposed_hint(base: &Base) -> &'static str {
    match base.config {
        None => "; it may be stored transposed, which only the model's folder with its config.json can tell",
        Some(_) => "",
    }
}

/// One sentence that names the modules and what the model has instead.
fn no_match(base: &Base, unmatched: &[&str]) -> Error {
    let modules: Vec<&str> = base.modules().collect();
    let mut said: Vec<String> =
        unmatched.iter().take(LISTED).map(|module| described(base, &modules, module)).collect();
    if unmatched.len() > LISTED {
        said.push(format!("and {} more match nothing either", unmatched.len() - LISTED));
    }
    Error::data(format!("{}: {}", base.path(), said.join("; ")))
}

fn described(base: &Base, modules: &[&str], module: &str) -> String {
    if let Some(place) = base.find(module) {
        let shape = &base.slot(place).shape;
        return format!(
            "{module} is a tensor of {shape:?}, not a module with a weight: stacked weights take no adapter of one layer"
        );
    }
    if last(module) == "lm_head" {
        return format!(
            "{module} has no weight of its own: it is tied to the embedding, which folding would change too"
        );
    }
    match similar(modules, module) {
        near if near.is_empty() => {
            format!("{module} matches no tensor, and the model has no module with a weight")
        }
        near => format!("{module} matches no tensor; near are {near}"),
    }
}
