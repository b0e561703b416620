//! Names of an adapter's tensors without what wrappers and training programs put into them.
//!
//! ```text
//! _orig_mod.base_model.model.layers.0._fsdp_wrapped_module.q.lora_A.default.weight     in the file
//! base_model.model.layers.0.q.lora_A.weight                                            plain
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::read_options::ReadOptions;
use crate::{Error, Loaded, Result, Suggestion, Tensors, text};

/// Prefix of a module's name in PEFT.
pub const PREFIX: &str = "base_model.model.";

/// Components that PyTorch puts before a module that it compiled, sharded or checkpoints.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Component before the name of an adapter whose modules were trained whole.
const SAVED: &str = "modules_to_save";
/// Component of the frozen copy beside them.
const ORIGINAL: &str = "original_module";

/// Tensors and modules of PEFT that hold one adapter's part each, by its name.
const NAMED: [&str; 11] = [
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
];

/// Prefix of all names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Prefix of PEFT, put before a name without it.
    Peft,
    /// Names stay as they are.
    Any,
}

/// Changes of names, and tensors that were left out.
#[derive(Debug, Default)]
pub struct Found {
    notes: Vec<String>,
    left_out: Vec<String>,
}

impl Found {
    /// Returns true if no tensor was left out.
    pub fn is_whole(&self) -> bool {
        self.left_out.is_empty()
    }

    /// Puts the changes into what was read.
    pub fn add_to(self, mut loaded: Loaded) -> Loaded {
        loaded.notes.splice(0..0, self.notes);
        loaded.left_out.extend(self.left_out);
        loaded
    }
}

/// A name taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Plain<'a> {
    name: String,
    /// Name of the adapter in it.
    adapter: Option<&'a str>,
    is_wrapped: bool,
    is_original: bool,
    lacks_prefix: bool,
}

impl<'a> Plain<'a> {
    fn new(stored: &'a str, prefix: Prefix) -> Self {
        let all: Vec<&str> = stored.split('.').collect();
        let mut parts: Vec<&str> = all.iter().copied().filter(|part| !WRAPPERS.contains(part)).collect();
        // DistributedDataParallel puts its own component before all others.
        if parts.starts_with(&["module", "base_model", "model"]) {
            parts.remove(0);
        }
        let is_wrapped = parts.len() < all.len();
        let of_processor = undo_processor(&mut parts);
        let is_original = parts.contains(&ORIGINAL);
        let saved = parts.iter().position(|part| *part == SAVED).filter(|at| at + 2 < parts.len());
        let adapter = match saved {
            Some(at) => parts.drain(at..at + 2).next_back(),
            None => {
                let at = parts.iter().rposition(|part| NAMED.contains(part)).map(|at| at + 1);
                let rest = at.map(|at| &parts[at..]);
                let is_named = rest.is_some_and(|rest| match rest {
                    [name] => !["weight", "bias"].contains(name),
                    [_, end] => ["weight", "bias"].contains(end),
                    _ => false,
                });
                at.filter(|_| is_named).map(|at| parts.remove(at))
            }
        };
        // PEFT's files have no `weight` after it.
        if adapter.is_some() && parts.ends_with(&["lora_magnitude_vector", "weight"]) {
            parts.pop();
        }
        let name = match of_processor {
            // The output of an attention is a list of the layer and its dropout.
            Some("to_out") => parts.join(".").replace(".to_out.lora", ".to_out.0.lora"),
            _ => parts.join("."),
        };
        let lacks_prefix = prefix == Prefix::Peft && !name.starts_with(PREFIX);
        let name = if lacks_prefix { format!("{PREFIX}{name}") } else { name };
        Self { name, adapter, is_wrapped, is_original, lacks_prefix }
    }
}

/// Takes the component out that old files of diffusers have for an attention's layer,
/// `attn1.processor.to_q_lora.down.weight` for `attn1.to_q.lora.down.weight`, and returns the layer.
fn undo_processor<'a>(parts: &mut Vec<&'a str>) -> Option<&'a str> {
    let &[.., "processor", layer, "down" | "up", "weight"] = &parts[..] else { return None };
    let layer = layer.strip_suffix("_lora").filter(|layer| !layer.is_empty())?;
    let at = parts.len() - 4;
    parts.splice(at..at + 2, [layer, "lora"]);
    Some(layer)
}

/// Gives a file's tensors their plain names, and keeps the chosen ones.
///
/// # Errors
/// Fails on names of several adapters of which none is chosen, on a choice that matches nothing, and on two
/// tensors that would have one name.
pub fn plain_names(tensors: Tensors, prefix: Prefix, options: &ReadOptions) -> Result<(Tensors, Found)> {
    let stored = tensors.names();
    let plain: Vec<Plain> = stored.iter().map(|name| Plain::new(name, prefix)).collect();
    let mut found = Found::default();
    let count = |is: fn(&Plain) -> bool| plain.iter().filter(|plain| is(plain)).count();
    let wrapped = text::first_and_more(
        stored.iter().zip(&plain).filter(|(_, plain)| plain.is_wrapped).map(|(name, _)| text::name(name)),
    );
    found.notes.extend(wrapped.map(|names| {
        format!(
            "names have the components of wrappers ({}), which were taken out: {names}",
            WRAPPERS.join(", ")
        )
    }));
    let lacking = count(|plain| plain.lacks_prefix);
    if lacking > 0 {
        found.notes.push(format!("{lacking} names lack {PREFIX}, and were taken as if they had it"));
    }
    let chosen = chosen_adapter(tensors.path(), &plain, options)?;
    found.notes.extend(chosen.map(|name| format!("the names have the adapter's, {}", text::name(name))));
    let without_prefix = |name: &'_ str| match prefix {
        Prefix::Peft => name.strip_prefix(PREFIX).unwrap_or(name).to_string(),
        Prefix::Any => name.to_string(),
    };
    let of_model = |plain: &Plain, only: &str| without_prefix(&plain.name).starts_with(&without_prefix(only));
    let mut names = BTreeMap::new();
    for (stored, plain) in stored.iter().zip(&plain) {
        let other_adapter = plain.adapter.is_some() && plain.adapter != chosen;
        let other_model = options.only.as_ref().is_some_and(|only| !of_model(plain, only));
        if plain.is_original || other_adapter || other_model {
            found.left_out.push(stored.clone());
        } else if let Some(other) = names.insert(plain.name.clone(), stored.clone()) {
            return Err(Error::data(format!(
                "{}: {} and {} are both {}, but a tensor occurs once",
                tensors.path(),
                text::name(&other),
                text::name(stored),
                text::name(&plain.name)
            )));
        }
    }
    if let (Some(only), true) = (&options.only, names.is_empty()) {
        return Err(Error::usage(format!(
            "{} has no module whose name starts with {}; a tensor of it is {}",
            tensors.path(),
            text::name(only),
            stored.first().map_or("none".into(), |name| text::name(name))
        )));
    }
    let frozen = count(|plain| plain.is_original);
    if frozen > 0 {
        found
            .notes
            .push(format!("{frozen} tensors are the model's own, frozen ({ORIGINAL}), and are left out"));
    }
    Ok((tensors.with_names(names), found))
}

/// Returns the name of the adapter that is read, if the tensors' names have one.
fn chosen_adapter<'a>(path: &str, plain: &[Plain<'a>], options: &ReadOptions) -> Result<Option<&'a str>> {
    let there: BTreeSet<&str> = plain.iter().filter_map(|plain| plain.adapter).collect();
    let listed = there.iter().map(|name| text::name(name)).collect::<Vec<_>>().join(", ");
    match (&options.adapter_name, there.len()) {
        (None, 0 | 1) => Ok(there.first().copied()),
        (None, _) => {
            Err(Error::data(format!("{path} holds several adapters, {listed}")).with(Suggestion::AdapterName))
        }
        (Some(name), _) => there.get(name.as_str()).copied().map(Some).ok_or_else(|| {
            let there =
                if listed.is_empty() { "no names of adapters".into() } else { format!("those of {listed}") };
            Error::usage(format!("{path} has no adapter {}: its tensors have {there}", text::name(name)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_plain() {
        let q = "base_model.model.h.0.q";
        for (stored, name, adapter) in [
            (format!("{q}.lora_A.weight"), format!("{q}.lora_A.weight"), None),
            (format!("{q}.lora_A.default.weight"), format!("{q}.lora_A.weight"), Some("default")),
            (format!("{q}.lora_B.x.bias"), format!("{q}.lora_B.bias"), Some("x")),
            (format!("{q}.lora_embedding_A.x"), format!("{q}.lora_embedding_A"), Some("x")),
            (format!("{q}.lora_magnitude_vector.x.weight"), format!("{q}.lora_magnitude_vector"), Some("x")),
            (format!("{q}.lora_magnitude_vector.weight"), format!("{q}.lora_magnitude_vector.weight"), None),
            (format!("{q}.lokr_w2_a.weight_2"), format!("{q}.lokr_w2_a"), Some("weight_2")),
            (format!("_orig_mod.{q}.lokr_w1"), format!("{q}.lokr_w1"), None),
            (format!("module.{q}.lokr_w1"), format!("{q}.lokr_w1"), None),
            (
                "base_model.model.h._fsdp_wrapped_module.0._checkpoint_wrapped_module.q.lokr_w1".into(),
                format!("{q}.lokr_w1"),
                None,
            ),
            ("h.0.q.lora_B.weight".into(), format!("{q}.lora_B.weight"), None),
            (
                "h.0.processor.to_q_lora.down.weight".into(),
                "base_model.model.h.0.to_q.lora.down.weight".into(),
                None,
            ),
            (
                "h.0.processor.to_out_lora.up.weight".into(),
                "base_model.model.h.0.to_out.0.lora.up.weight".into(),
                None,
            ),
            (
                "base_model.model.score.modules_to_save.default.weight".into(),
                "base_model.model.score.weight".into(),
                Some("default"),
            ),
            (
                "base_model.model.module.lora_A.weight".into(),
                "base_model.model.module.lora_A.weight".into(),
                None,
            ),
        ] {
            let plain = Plain::new(&stored, Prefix::Peft);
            assert_eq!((&plain.name, plain.adapter), (&name, adapter), "{stored}");
        }
        assert_eq!(Plain::new("h.0.q.lora_B.weight", Prefix::Any).name, "h.0.q.lora_B.weight");
        assert!(Plain::new("base_model.model.score.original_module.weight", Prefix::Peft).is_original);
    }
}
