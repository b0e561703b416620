//! Names that differ from the model's by one leading component, `transformer.` or `model.`:
//! a model saved without its head, and an adapter trained with it, or the other way round.

use std::collections::{BTreeSet, HashSet};

use crate::{Adapter, Layer};

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
pub(super) fn aligned(adapter: &Adapter, modules: &[&str]) -> Option<(Adapter, String)> {
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
    Some((adapter.with_layers(renamed.collect::<Option<_>>()?).ok()?, change.note()))
}

/// Returns a name's first component with its dot, if more follows.
fn root(module: &str) -> Option<&str> {
    module.split_inclusive('.').next().filter(|first| first.ends_with('.'))
}
