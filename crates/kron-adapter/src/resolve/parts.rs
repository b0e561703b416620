//! Parts of an adapter's file, each for a model of its own: a denoiser and its text encoders.

use std::collections::BTreeMap;

use crate::Adapter;
use crate::lycoris_names::part;
use crate::text::name;

/// Returns the prefix of a name without dots, empty where it is not known.
pub(super) fn of_trainer(module: &str) -> &str {
    part(module).unwrap_or("")
}

/// Returns the part of a module: the prefix of a name without dots, or else its first component with the dot.
fn of(module: &str) -> &str {
    match module.find('.') {
        Some(dot) => &module[..=dot],
        None => of_trainer(module),
    }
}

/// Describes which parts of the adapter match where some match wholly and others not at all; `None` otherwise.
///
/// `is_placed` tells of each layer of `adapter`, in order, if the model has its module.
pub(super) fn described(adapter: &Adapter, is_placed: &[bool]) -> Option<String> {
    let mut parts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for (layer, is_placed) in adapter.layers().iter().zip(is_placed) {
        parts.entry(of(layer.module())).or_default()[usize::from(*is_placed)] += 1;
    }
    let list = |placed: usize| {
        let of_kind = parts.iter().filter(|(_, counts)| counts[1 - placed] == 0);
        let listed: Vec<_> =
            of_kind.map(|(part, counts)| format!("{} ({})", name(part), counts[placed])).collect();
        listed.join(", ")
    };
    let (missing, placed) = (list(0), list(1));
    let is_mixed = parts.values().any(|[missing, placed]| *missing > 0 && *placed > 0);
    (!is_mixed && !missing.is_empty() && !placed.is_empty())
        .then(|| format!("the model has all modules of {placed} and none of {missing}"))
}
