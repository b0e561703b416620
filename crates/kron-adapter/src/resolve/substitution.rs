//! Substitutions of the start of names, tower by tower: a checkpoint names its towers otherwise than the model that
//! was trained, `language_model.model.layers.0` and `model.language_model.layers.0`, or a text model's adapter meets
//! a model with vision.
//!
//! A tower is what has one start of the name before the first number: `model.layers.0.mlp.up` lies in the tower
//! `model`, with the rest `layers.0.mlp.up`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::base::BaseModel;
use crate::matrix::without_ones;
use crate::{Adapter, Layer, Result, TrainedTensor};

/// Most towers of an adapter that get other names, and most towers of a model that are tried for each: models have a few.
const MAX_TOWERS: usize = 64;

/// Splits a module's name into its tower and the rest: the list before the first number, or the last component,
/// begins the rest.
pub(super) fn tower(module: &str) -> (&str, &str) {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (mut start, mut list) = (0, 0);
    for part in module.split('.') {
        if is_number(part) && start > 0 {
            return cut(module, list);
        }
        list = start;
        start += part.len() + 1;
    }
    cut(module, list)
}

fn cut(module: &str, at: usize) -> (&str, &str) {
    (module[..at].trim_end_matches('.'), &module[at..])
}

fn joined(tower: &str, rest: &str) -> String {
    if tower.is_empty() { rest.into() } else { format!("{tower}.{rest}") }
}

/// Returns true if one tower has all components of the other, in any order.
fn is_related(one: &str, other: &str) -> bool {
    let (one, other) = (sorted_parts(one), sorted_parts(other));
    let (all, some) = if one.len() < other.len() { (other, one) } else { (one, other) };
    let mut all = all.iter();
    some.iter().all(|part| all.any(|there| there == part))
}

fn sorted_parts(tower: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = tower.split('.').filter(|part| !part.is_empty()).collect();
    parts.sort_unstable();
    parts
}

/// A model's towers by the rest of their modules' names.
pub(super) struct Towers<'a>(HashMap<&'a str, Vec<&'a str>>);

impl<'a> Towers<'a> {
    /// Takes the names of all modules apart.
    pub(super) fn of(modules: impl Iterator<Item = &'a str>) -> Self {
        let mut of_rest: HashMap<&str, Vec<&str>> = HashMap::new();
        for module in modules {
            let (head, rest) = tower(module);
            of_rest.entry(rest).or_default().push(head);
        }
        Self(of_rest)
    }

    /// Returns the towers that have a module with this one's rest, and all components of its tower or none beyond
    /// them; nothing where too many have the rest.
    fn related(&self, module: &str) -> impl Iterator<Item = &'a str> {
        let (head, rest) = tower(module);
        let towers = self.0.get(rest).filter(|towers| towers.len() <= MAX_TOWERS);
        towers.into_iter().flatten().copied().filter(move |to| is_related(head, to))
    }

    /// Returns the module's names in related towers.
    pub(super) fn names(&self, module: &str) -> impl Iterator<Item = String> {
        let rest = tower(module).1;
        self.related(module).map(move |to| joined(to, rest))
    }
}

/// Returns the adapter with the model's names for every tower none of whose layers has a place, if exactly one
/// tower of the model with related components takes all of them, and a note on each substitution.
///
/// A tower whose place is not certain keeps its names.
pub(super) fn with_towers(
    adapter: &Adapter,
    modules: &[&str],
    base: &impl BaseModel,
) -> Result<(Adapter, Vec<String>)> {
    let own: HashSet<&str> = modules.iter().copied().collect();
    let mut towers: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
    for layer in adapter.layers() {
        towers.entry(tower(layer.module()).0).or_default().push(layer);
    }
    let of_rest = Towers::of(modules.iter().copied());
    let has_place = |layer: &&Layer| own.contains(layer.module());
    let (placed, lost): (Vec<_>, Vec<_>) =
        towers.iter().partition(|(_, layers)| layers.iter().any(has_place));
    if lost.len() > MAX_TOWERS {
        return Ok((adapter.clone(), Vec::new()));
    }
    let mut taken: HashSet<&str> = placed.iter().map(|(head, _)| **head).collect();
    let mut found = BTreeMap::new();
    for (head, layers) in lost {
        if let Some(to) = only_place(layers, &of_rest, base) {
            // Two towers in one place are two models' parts.
            if !taken.insert(to) {
                return Ok((adapter.clone(), Vec::new()));
            }
            found.insert(*head, to);
        }
    }
    if found.is_empty() {
        return Ok((adapter.clone(), Vec::new()));
    }
    let layers = adapter.layers().iter().map(|layer| {
        let (head, rest) = tower(layer.module());
        found.get(head).map_or_else(|| Ok(layer.clone()), |to| layer.renamed(joined(to, rest)))
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let changes: BTreeSet<Change> = found.iter().map(|(from, to)| Change::new(from, to)).collect();
    let trained = adapter.trained_tensors().iter().map(|tensor| renamed_tensor(tensor, &changes, base));
    let trained = trained.collect::<Result<Vec<_>>>()?;
    let alone = adapter.clone().with_trained_tensors(Vec::new())?;
    let adapter = alone.with_layers(layers)?.with_trained_tensors(trained)?;
    Ok((adapter, changes.iter().map(Change::note).collect()))
}

/// Returns the only tower of the model that takes all layers of one; weights of a wrong shape take none, unless
/// no tower has the right ones.
fn only_place<'a>(layers: &[&Layer], of_rest: &Towers<'a>, base: &impl BaseModel) -> Option<&'a str> {
    let (first, _) = layers.split_first()?;
    let weight = |to: &str, layer: &Layer| base.weight(&joined(to, tower(layer.module()).1));
    let has_all = |to: &&str| layers.iter().all(|layer| weight(to, layer).is_some());
    let named: Vec<&str> = of_rest.related(first.module()).filter(has_all).collect();
    let fits = |to: &str, layer: &Layer| {
        let sides = [layer.shape().d_out(), layer.shape().d_in()];
        weight(to, layer).is_some_and(|(_, shape)| {
            let shape = without_ones(shape);
            shape == sides || shape.iter().rev().eq(&sides)
        })
    };
    let fitting: Vec<&str> =
        named.iter().copied().filter(|to| layers.iter().all(|layer| fits(to, layer))).collect();
    match (&fitting[..], &named[..]) {
        ([to], _) | ([], [to]) => Some(to),
        _ => None,
    }
}

/// A start of names and the one that takes its place, without the components that both end with.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Change {
    from: String,
    to: String,
}

impl Change {
    /// Compares two towers.
    pub(super) fn new(from: &str, to: &str) -> Self {
        let parts = |tower: &str| -> Vec<String> {
            tower.split('.').filter(|part| !part.is_empty()).map(|part| format!("{part}.")).collect()
        };
        let (mut from, mut to) = (parts(from), parts(to));
        while from.last().is_some_and(|last| to.last() == Some(last)) {
            from.pop();
            to.pop();
        }
        Self { from: from.concat(), to: to.concat() }
    }

    /// Tells the user of the change.
    pub(super) fn note(&self) -> String {
        let Self { from, to } = self;
        match (from.is_empty(), to.is_empty()) {
            (true, _) => format!("{to} was put before the adapter's names: the model's have it"),
            (_, true) => format!("{from} was taken off the adapter's names: the model's lack it"),
            _ => format!("{from} became {to} in the adapter's names, as the model has it"),
        }
    }
}

/// Changes the name of a trained tensor if the model has only the changed one, and only one change does it.
fn renamed_tensor(
    tensor: &TrainedTensor,
    changes: &BTreeSet<Change>,
    base: &impl BaseModel,
) -> Result<TrainedTensor> {
    if base.tensor(tensor.name()).is_some() {
        return Ok(tensor.clone());
    }
    let changed = changes.iter().filter_map(|Change { from, to }| {
        Some(format!("{to}{}", tensor.name().strip_prefix(from.as_str())?))
    });
    let found: BTreeSet<String> = changed.filter(|name| base.tensor(name).is_some()).collect();
    match found.first().filter(|_| found.len() == 1) {
        Some(name) => tensor.renamed(name.as_str()),
        None => Ok(tensor.clone()),
    }
}
