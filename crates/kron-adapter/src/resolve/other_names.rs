//! Names of modules beyond the layers, changed as resolution changed those of the layers.

use std::collections::{BTreeSet, HashMap};

use super::base::BaseModel;
use super::substitution::{Change, Towers, tower};
use crate::Adapter;
use crate::lycoris_names::part;

/// Leading parts that the layers' names lost, and those that they got instead. There may be as many as layers.
type Changes<'a> = HashMap<&'a str, BTreeSet<String>>;

/// Names of an adapter's modules in the model.
pub(super) struct Renamed<'a, B> {
    base: &'a B,
    layers: HashMap<&'a str, &'a str>,
    changes: Changes<'a>,
    /// Changes of names whose dots are underscores.
    flat_changes: Changes<'a>,
    /// The model's modules by their names with underscores for dots; `None` for two of one name.
    flat: HashMap<String, Option<&'a str>>,
    towers: Towers<'a>,
    /// Notes on changes that no layer's name has.
    notes: BTreeSet<String>,
}

impl<'a, B: BaseModel> Renamed<'a, B> {
    /// Compares the names of the layers before and after resolution, which keeps their order.
    pub(super) fn new(before: &'a Adapter, after: &'a Adapter, base: &'a B) -> Self {
        let pairs = before.layers().iter().zip(after.layers());
        let layers: HashMap<_, _> = pairs.map(|(old, new)| (old.module(), new.module())).collect();
        let (mut changes, mut flat_changes) = (Changes::new(), Changes::new());
        for (old, new) in &layers {
            let (lost, got) = leading(old, new, b'.');
            changes.entry(lost).or_default().insert(got.into());
            if !old.contains('.') {
                let new = new.replace('.', "_");
                let (lost, got) = leading(old, &new, b'_');
                flat_changes.entry(lost).or_default().insert(got.into());
            }
        }
        let mut flat: HashMap<String, Option<&str>> = HashMap::new();
        let modules: BTreeSet<&str> =
            base.tensor_names().filter_map(|name| name.rsplit_once('.')).map(|(module, _)| module).collect();
        for module in &modules {
            let module = *module;
            let entry = flat.entry(module.replace('.', "_"));
            entry.and_modify(|found| *found = None).or_insert(Some(module));
        }
        let (towers, notes) = (Towers::of(modules.into_iter()), BTreeSet::new());
        Self { base, layers, changes, flat_changes, flat, towers, notes }
    }

    /// Returns the model's name of a layer's module.
    pub(super) fn of_layer(&self, module: &str) -> String {
        self.layers.get(module).map_or(module, |module| *module).into()
    }

    /// Returns a sentence on each change that [`Self::of_tensor`] made and no layer's name has.
    pub(super) fn notes(self) -> Vec<String> {
        self.notes.into_iter().collect()
    }

    /// Returns the module in which the model has the parameter; `module` itself if it has it nowhere, or in two places.
    pub(super) fn of_tensor(&mut self, module: &str, parameter: &str) -> String {
        let has = |module: &str| self.base.tensor(&format!("{module}.{parameter}")).is_some();
        if let Some(of_layer) = self.layers.get(module) {
            return (*of_layer).into();
        }
        if has(module) {
            return module.into();
        }
        let known = part(module).map(|prefix| module[prefix.len()..].to_string());
        let as_layers = changed(module, '_', &self.flat_changes);
        let flat = known.into_iter().chain(as_layers).filter(|_| !module.contains('.'));
        let dotted: BTreeSet<&str> = flat.filter_map(|name| *self.flat.get(&name)?).collect();
        if let Some(one) = only(dotted.into_iter()) {
            return one.into();
        }
        let changed: BTreeSet<String> =
            changed(module, '.', &self.changes).filter(|module| has(module)).collect();
        if !changed.is_empty() {
            return only(changed.into_iter()).unwrap_or_else(|| module.into());
        }
        // Without a layer to follow, the only tower that has the parameter takes it.
        let Some(found) = only(self.towers.names(module).filter(|module| has(module))) else {
            return module.into();
        };
        self.notes.insert(Change::new(tower(module).0, tower(&found).0).note());
        found
    }
}

/// Returns the item of an iterator that has one.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

/// Returns a module's name after each change of a leading part that ends at a separator.
fn changed(module: &str, separator: char, changes: &Changes) -> impl Iterator<Item = String> {
    let ends = module.match_indices(separator).flat_map(|(at, _)| [at, at + 1]);
    let of = move |at: usize| {
        let (old, rest) = module.split_at(at);
        changes.get(old).into_iter().flatten().map(move |new| format!("{new}{rest}"))
    };
    [0, module.len()].into_iter().chain(ends).flat_map(of)
}

/// Returns the parts of two names before their longest common end that begins after a separator in both.
fn leading<'a, 'b>(old: &'a str, new: &'b str, separator: u8) -> (&'a str, &'b str) {
    let common = old.bytes().rev().zip(new.bytes().rev()).take_while(|(a, b)| a == b).count();
    let ends = (0..common).rev().map(|left| (old.len() - left - 1, new.len() - left - 1));
    let mut cuts = ends.filter(|(o, n)| starts(old, *o, separator) && starts(new, *n, separator));
    cuts.next().map_or((old, new), |(o, n)| (&old[..o], &new[..n]))
}

fn starts(name: &str, at: usize, separator: u8) -> bool {
    at == 0 || name.as_bytes().get(at - 1) == Some(&separator)
}

#[cfg(test)]
mod tests {
    use kron_core::{KronShape, LayerDims, Theta};
    use safetensors::Dtype;

    use super::*;
    use crate::resolve::{BaseTensors, resolve_module_names};
    use crate::{Layer, Scaling};

    fn adapter(modules: &[&str]) -> Adapter {
        let shape = KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 2).unwrap();
        let layer = |module: &&str| Layer::new(*module, Scaling::plain(1.0)?, Theta::random(shape, 1));
        match modules.is_empty() {
            true => Adapter::without_layers(),
            false => Adapter::new(modules.iter().map(layer).collect::<crate::Result<_>>().unwrap()).unwrap(),
        }
    }

    /// Norms, biases and experts lie where the layers' names led, or in the only tower that has them.
    #[test]
    fn other_modules_follow_the_layers() {
        let flat = "mine_blocks_0_q";
        for (model, layers, module, parameter, want, says) in [
            (&["a.blocks.0.q.weight", "a.n.weight"][..], &[flat][..], "mine_n", "weight", "a.n", ""),
            (&["t.h.0.q.weight", "t.n.bias"], &["h.0.q"], "n", "bias", "t.n", ""),
            (&["h.0.q.weight", "n.bias"], &["t.h.0.q"], "t.n", "bias", "n", ""),
            (&["blocks.0.q.weight", "n.weight"], &[flat], "other_n", "weight", "other_n", ""),
            (
                &["m.lm.layers.0.mlp.experts.down"],
                &[],
                "m.layers.0.mlp.experts",
                "down",
                "m.lm.layers.0.mlp.experts",
                "m. became m.lm. in",
            ),
            (&["a.m.layers.0.e.up", "b.m.layers.0.e.up"], &[], "m.layers.0.e", "up", "m.layers.0.e", ""),
            (&["a.layers.0.e.up"], &[], "b.layers.0.e", "up", "b.layers.0.e", ""),
        ] {
            let tensor = |name: &&str| {
                (name.to_string(), Dtype::F32, if name.ends_with("q.weight") { vec![6, 10] } else { vec![6] })
            };
            let base = BaseTensors::new("model", model.iter().map(tensor));
            let before = adapter(layers);
            let after = match layers.is_empty() {
                true => before.clone(),
                false => resolve_module_names(&before, &base).unwrap().adapter,
            };
            let mut names = Renamed::new(&before, &after, &base);
            assert_eq!(names.of_tensor(module, parameter), want, "{layers:?}");
            let notes = names.notes().concat();
            assert!(notes.starts_with(says) && notes.is_empty() == says.is_empty(), "{notes}");
        }
    }

    #[test]
    fn the_leading_parts_end_at_separators() {
        for (old, new, want) in [
            ("a.q", "model.a.q", ("", "model.")),
            ("model.a.q", "a.q", ("model.", "")),
            ("model.a.q", "model.b.a.q", ("model.", "model.b.")),
            ("xa.q", "ya.q", ("xa.", "ya.")),
            ("a.q", "a.q", ("", "")),
            ("lycoris_a_q", "a.q", ("lycoris_a_q", "a.q")),
            ("q", "k", ("q", "k")),
        ] {
            assert_eq!(leading(old, new, b'.'), want, "{old} {new}");
        }
        assert_eq!(leading("mine_a_q", "model_b_a_q", b'_'), ("mine_", "model_b_"));
    }
}
