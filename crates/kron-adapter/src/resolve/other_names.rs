//! Names of modules beyond the layers, changed as resolution changed those of the layers.

use std::collections::{BTreeSet, HashMap};

use super::base::BaseModel;
use crate::Adapter;
use crate::lycoris_names::part;

/// Names of an adapter's modules in the model.
pub(super) struct Renamed<'a, B> {
    base: &'a B,
    layers: HashMap<&'a str, &'a str>,
    /// Leading parts that the layers' names lost, and those that they got instead.
    changes: BTreeSet<(&'a str, &'a str)>,
    /// The model's modules by their names with underscores for dots; `None` for two of one name.
    flat: HashMap<String, Option<&'a str>>,
}

impl<'a, B: BaseModel> Renamed<'a, B> {
    /// Compares the names of the layers before and after resolution, which keeps their order.
    pub(super) fn new(before: &'a Adapter, after: &'a Adapter, base: &'a B) -> Self {
        let pairs = before.layers().iter().zip(after.layers());
        let layers: HashMap<_, _> = pairs.map(|(old, new)| (old.module(), new.module())).collect();
        let changes = layers.iter().map(|(old, new)| leading(old, new)).collect();
        let mut flat: HashMap<String, Option<&str>> = HashMap::new();
        let modules: BTreeSet<&str> =
            base.tensor_names().filter_map(|name| name.rsplit_once('.')).map(|(module, _)| module).collect();
        for module in modules {
            let entry = flat.entry(module.replace('.', "_"));
            entry.and_modify(|found| *found = None).or_insert(Some(module));
        }
        Self { base, layers, changes, flat }
    }

    /// Returns the model's name of a layer's module.
    pub(super) fn of_layer(&self, module: &str) -> String {
        self.layers.get(module).map_or(module, |module| *module).into()
    }

    /// Returns the module in which the model has the parameter; `module` itself if it has it nowhere, or in two places.
    pub(super) fn of_tensor(&self, module: &str, parameter: &str) -> String {
        let has = |module: &str| self.base.tensor(&format!("{module}.{parameter}")).is_some();
        if let Some(of_layer) = self.layers.get(module) {
            return (*of_layer).into();
        }
        if has(module) {
            return module.into();
        }
        if let Some(Some(dotted)) = part(module).and_then(|prefix| self.flat.get(&module[prefix.len()..])) {
            return (*dotted).into();
        }
        let changed = |(old, new): &(&str, &str)| Some(format!("{new}{}", module.strip_prefix(old)?));
        let found: BTreeSet<String> =
            self.changes.iter().filter_map(changed).filter(|module| has(module)).collect();
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(one), None) => one,
            _ => module.into(),
        }
    }
}

/// Returns the parts of two names before their longest common end that begins after a dot in both.
fn leading<'a>(old: &'a str, new: &'a str) -> (&'a str, &'a str) {
    let common = old.bytes().rev().zip(new.bytes().rev()).take_while(|(a, b)| a == b).count();
    let ends = (0..common).rev().map(|left| (old.len() - left - 1, new.len() - left - 1));
    let mut cuts = ends.filter(|(o, n)| starts(old, *o) && starts(new, *n));
    cuts.next().map_or((old, new), |(o, n)| (&old[..o], &new[..n]))
}

fn starts(name: &str, at: usize) -> bool {
    at == 0 || name.as_bytes().get(at - 1) == Some(&b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leading_parts_end_at_dots() {
        for (old, new, want) in [
            ("a.q", "model.a.q", ("", "model.")),
            ("model.a.q", "a.q", ("model.", "")),
            ("model.a.q", "model.b.a.q", ("model.", "model.b.")),
            ("xa.q", "ya.q", ("xa.", "ya.")),
            ("a.q", "a.q", ("", "")),
            ("lycoris_a_q", "a.q", ("lycoris_a_q", "a.q")),
            ("q", "k", ("q", "k")),
        ] {
            assert_eq!(leading(old, new), want, "{old} {new}");
        }
    }
}
