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

/// The adapter with the names of the model's modules, and a sentence that says
/// what was changed: one leading component, dropped or added, the same for
/// every layer.
///
/// `None` when a layer has its place without that, and when no component or more
/// than one gives every layer a place: the names then stay for the caller to judge.
pub fn rooted<'a>(adapter: &Adapter, modules: impl Iterator<Item = &'a str>) -> Option<(Adapter, String)> {
    let modules: HashSet<&str> = modules.collect();
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
    let renamed = layers
        .iter()
        .map(|layer| Layer::new(change.apply(layer.module())?, layer.scaling(), layer.theta().clone()).ok());
    Some((adapter.with_layers(renamed.collect::<Option<_>>()?).ok()?, change.note()))
}

/// A name's first component with its dot, when more follows.
fn root(module: &str) -> Option<&str> {
    module.split_inclusive('.').next().filter(|first| first.ends_with('.'))
}
