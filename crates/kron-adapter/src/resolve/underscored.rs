//! Names that LyCORIS or a trainer wrote with an underscore for each dot, with the model's dots again.
//!
//! ```text
//! lora_transformer_blocks_0_to_q  =  prefix lora_transformer_ + blocks_0_to_q
//! model's decoder.blocks.0.to_q   =  root decoder. + blocks.0.to_q
//! ```
//!
//! The prefix is a known one, or the one that all layers of a part share; the root, mostly empty, is the same for all
//! of them too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::parts::of_trainer;
use super::substitution::tower;
use crate::lycoris_names::is_known;
use crate::{Adapter, Error, Result, Suggestion};

/// Most parts of a file whose prefix is searched for: each of them takes a look at all cuts of a name with all roots.
const MAX_PARTS: usize = 64;

/// Most roots of a model that are tried: models have a few.
const MAX_ROOTS: usize = 256;

/// Modules of the model by their names with underscores.
type Flat<'a> = HashMap<String, Vec<&'a str>>;

/// Returns the adapter with the model's own names for modules without dots, and what was done; a module
/// that the model does not have keeps its name.
///
/// # Errors
/// Fails if two modules of the model have one name without dots, and if two parts of the adapter have one module.
pub(super) fn with_dots(adapter: &Adapter, modules: &[&str]) -> Result<(Adapter, Vec<String>)> {
    let own: HashSet<&str> = modules.iter().copied().collect();
    let mut parts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let flat_names = adapter.layers().iter().map(|layer| layer.module());
    for name in flat_names.filter(|name| name.contains('_') && !name.contains('.') && !own.contains(name)) {
        parts.entry(of_trainer(name)).or_default().push(name);
    }
    if parts.is_empty() {
        return Ok((adapter.clone(), Vec::new()));
    }
    let mut flat = Flat::new();
    modules.iter().for_each(|module| flat.entry(module.replace('.', "_")).or_default().push(module));
    let mut roots: BTreeSet<&str> = modules.iter().flat_map(|module| roots(module)).collect();
    if roots.len() > MAX_ROOTS {
        roots.clear();
    }
    let (mut renamed, mut notes) = (HashMap::new(), Vec::new());
    for (part, names) in &parts {
        if parts.len() > MAX_PARTS && !is_known(part) {
            continue;
        }
        let Some((prefix, root)) = place(part, names, &flat, &roots) else { continue };
        for name in names {
            if let Some(found) = flat.get(&format!("{}{}", root.replace('.', "_"), &name[prefix..])) {
                renamed.insert(*name, one(name, found)?);
            }
        }
        if !is_known(&names[0][..prefix]) && prefix > 0 {
            notes.push(format!(
                "{} was taken off the adapter's names, whose underscores became dots",
                &names[0][..prefix]
            ));
        }
        if !root.is_empty() {
            notes.push(format!("{root} was put before the names of {part}: the model's have it"));
        }
    }
    let mut taken = HashMap::new();
    for (name, module) in &renamed {
        if let Some(other) = taken.insert(*module, *name) {
            let mut both = [of_trainer(name), of_trainer(other)];
            both.sort_unstable();
            return Err(Error::data(format!(
                "the parts {} and {} of the adapter both have a layer for {module}, but the model is for one of them",
                both[0], both[1]
            ))
            .with(Suggestion::Only));
        }
    }
    let layers = adapter.layers().iter().map(|layer| match renamed.get(layer.module()) {
        Some(module) => layer.renamed(*module),
        None => Ok(layer.clone()),
    });
    Ok((adapter.with_layers(layers.collect::<Result<_>>()?)?, notes))
}

/// Returns the dotted starts of a module's name that a part's names may lack.
fn roots(module: &str) -> impl Iterator<Item = &str> {
    let (head, _) = tower(module);
    std::iter::once(0)
        .chain(head.match_indices('.').map(|(at, _)| at + 1))
        .chain(match head.len() {
            0 => None,
            len => Some(len + 1),
        })
        .map(|end| &module[..end])
}

/// Returns the length of the prefix and the root that give the part's names their modules.
///
/// With a known prefix and no root one module suffices; else all of them have to be found, in one way.
fn place<'a>(part: &str, names: &[&str], flat: &Flat, roots: &BTreeSet<&'a str>) -> Option<(usize, &'a str)> {
    let finds = |prefix: usize, root: &str, name: &str| {
        name.get(prefix..).is_some_and(|rest| flat.contains_key(&format!("{root}{rest}")))
    };
    let first = names.first()?;
    if is_known(part) && names.iter().any(|name| finds(part.len(), "", name)) {
        return Some((part.len(), ""));
    }
    let cuts = std::iter::once(0).chain(first.match_indices('_').map(|(at, _)| at + 1));
    let prefixes: Vec<usize> =
        if is_known(part) { vec![part.len()] } else { cuts.filter(|cut| *cut >= part.len()).collect() };
    let candidates = |root: &str| {
        let root = root.replace('.', "_");
        let fits = |prefix: &&usize| {
            finds(**prefix, &root, first)
                && names
                    .iter()
                    .all(|name| name.starts_with(&first[..**prefix]) && finds(**prefix, &root, name))
        };
        prefixes.iter().filter(fits).copied().collect::<Vec<_>>()
    };
    match candidates("")[..] {
        [] => {}
        [prefix] => return Some((prefix, "")),
        _ => return None,
    }
    let with_root = roots.iter().filter(|root| !root.is_empty());
    let mut found = with_root.flat_map(|root| candidates(root).into_iter().map(|prefix| (prefix, *root)));
    let one = found.next();
    one.filter(|_| found.next().is_none())
}

/// Returns the only module.
fn one<'a>(name: &str, found: &[&'a str]) -> Result<&'a str> {
    match found {
        [module] => Ok(module),
        _ => Err(Error::data(format!(
            "{name} may be {} or {}: LyCORIS writes both names so, with an underscore for a dot",
            found.first().unwrap_or(&""),
            found.get(1).unwrap_or(&"")
        ))),
    }
}
