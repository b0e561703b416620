//! Names that differ from the model's by one leading component, `transformer.` or `model.`:
//! a model saved without its head, and an adapter trained with it, or the other way round.

use std::collections::{BTreeSet, HashSet};

use super::base::BaseModel;
use crate::{Adapter, Layer, Result, TrainedTensor};

/// One leading component, with its dot, that the names have too much or lack.
enum Change<'a> {
    Drop(&'a str),
    Add(&'a str),
}

impl Change<'_> {
    fn apply(&self, module: &str) -> Option<String> {
        match self {
            Change::Drop(root) => module.strip_prefix(root).map(str::to_string),
            Change::Add(root) => Some(format!("{root}{module}")),
        }
    }

    fn note(&self) -> String {
        match self {
            Change::Drop(root) => format!("{root} was taken off the adapter's names: the model's lack it"),
            Change::Add(root) => format!("{root} was put before the adapter's names: the model's have it"),
        }
    }
}

/// Returns the adapter with one leading component dropped from every name or
/// added to every name, and a note that says which.
///
/// `None` if a layer has its place already, or if no change or more than one
/// gives every layer a place.
pub(super) fn aligned(
    adapter: &Adapter,
    modules: &[&str],
    base: &impl BaseModel,
) -> Option<(Adapter, String)> {
    let modules: HashSet<&str> = modules.iter().copied().collect();
    let layers = adapter.layers();
    if layers.iter().any(|layer| modules.contains(layer.module())) {
        return None;
    }
    let drop = layers.first().and_then(|layer| root(layer.module())).map(Change::Drop);
    let roots: BTreeSet<&str> = modules.iter().filter_map(|module| root(module)).collect();
    let changes = drop.into_iter().chain(roots.into_iter().map(Change::Add));
    let mut fitting = changes.filter(|change| {
        let fits = |layer: &Layer| change.apply(layer.module()).is_some_and(|m| modules.contains(&m[..]));
        layers.iter().all(fits)
    });
    let (Some(change), None) = (fitting.next(), fitting.next()) else { return None };
    let renamed = layers.iter().map(|layer| layer.renamed(change.apply(layer.module())?).ok());
    let layers = renamed.collect::<Option<_>>()?;
    let trained = adapter.trained_tensors().iter().map(|tensor| renamed_tensor(tensor, &change, base));
    let trained = trained.collect::<Result<_>>().ok()?;
    let alone = adapter.clone().with_trained_tensors(Vec::new()).ok()?;
    let adapter = alone.with_layers(layers).and_then(|adapter| adapter.with_trained_tensors(trained)).ok()?;
    Some((adapter, change.note()))
}

/// Changes the name of a trained tensor if the model has only the changed one: a new head keeps its name.
fn renamed_tensor(tensor: &TrainedTensor, change: &Change, base: &impl BaseModel) -> Result<TrainedTensor> {
    let has = |name: &str| base.tensor(name).is_some();
    match change.apply(tensor.name()).filter(|name| has(name) && !has(tensor.name())) {
        Some(name) => tensor.renamed(name),
        None => Ok(tensor.clone()),
    }
}

/// Returns a name's first component with its dot, if more follows.
fn root(module: &str) -> Option<&str> {
    module.split_inclusive('.').next().filter(|first| first.ends_with('.'))
}
