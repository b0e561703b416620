//! Resolution of an adapter's module names: the base model's tensor for each layer.
//!
//! ```text
//! adapter's modules ─ LyCORIS's underscores undone ─ one leading component added or dropped ─┐
//! base model's tensor names and shapes ──────────────────────────────────────────────────────┴▶ placements
//! ```
//!
//! Everything here is a pure function of names and shapes: no file is opened.
//!
//! ```
//! use kron_adapter::resolve::{BaseTensors, place_layers, resolve_module_names};
//! # use kron_adapter::{Adapter, Layer, Scaling};
//! # use kron_core::{KronShape, LayerDims, Theta};
//! # let layer = |module: &str| {
//! #     let shape = KronShape::lora(LayerDims { d_out: 6, d_in: 4 }, 2)?;
//! #     Layer::new(module, Scaling::plain(1.0)?, Theta::random(shape, 1))
//! # };
//! let adapter = Adapter::new(vec![layer("h.0.q")?])?; // trained without the language model's head
//! let base = BaseTensors::new("gpt2", [("transformer.h.0.q.weight", safetensors::Dtype::F16, vec![6, 4])]);
//! let resolved = resolve_module_names(&adapter, &base)?;
//! assert_eq!(resolved.notes, ["transformer. was put before the adapter's names: the model's have it"]);
//! assert_eq!(place_layers(&resolved.adapter, &base)?[0].tensor, "transformer.h.0.q.weight");
//! # Ok::<(), kron_adapter::Error>(())
//! ```

mod base;
mod experts;
mod extras;
mod lycoris_names;
mod other_names;
mod placement;
mod root;
mod unmatched;

pub use base::{BaseModel, BaseTensors};
pub use experts::{PlacedExperts, place_experts};
pub use extras::{place_change, resolve_extras};
pub use placement::{Placement, place_layers, place_trained_tensors};

use crate::{Adapter, Layer, Result};

/// An adapter with the module names of a base model.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The adapter; only names differ from the one that was given.
    pub adapter: Adapter,
    /// Changes of names that the user should know of, one sentence each.
    pub notes: Vec<String>,
}

/// Gives every layer the name of a module of the model.
///
/// Names that LyCORIS wrote with underscores get the model's dots back. If no
/// layer has a place then, one leading component is added to all names or
/// dropped from all, provided that exactly one such change gives every layer a place.
/// The same change is made to a trained tensor whose name the model has only after it.
///
/// # Errors
/// Fails if two modules of the model have one name in LyCORIS, and if a layer
/// has no weight in the model; the error lists the nearest names.
pub fn resolve_module_names(adapter: &Adapter, base: &impl BaseModel) -> Result<Resolved> {
    let modules: Vec<&str> = base.modules().collect();
    let adapter = lycoris_names::with_dots(adapter, &modules)?;
    let (adapter, notes) = match root::aligned(&adapter, &modules, base) {
        Some((adapter, note)) => (adapter, vec![note]),
        None => (adapter, Vec::new()),
    };
    let missing = adapter.layers().iter().map(Layer::module);
    let missing: Vec<_> = missing.filter(|module| base.weight(module).is_none()).collect();
    match missing.is_empty() {
        true => Ok(Resolved { adapter, notes }),
        false => Err(unmatched::error(base, &modules, &missing)),
    }
}

#[cfg(test)]
mod tests {
    use kron_core::{KronShape, LayerDims, Theta};
    use safetensors::Dtype;

    use super::*;
    use crate::Scaling;

    fn adapter(modules: &[&str]) -> Adapter {
        let shape = KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 2).unwrap();
        let layer = |module: &&str| Layer::new(*module, Scaling::plain(1.0)?, Theta::random(shape, 1));
        Adapter::new(modules.iter().map(layer).collect::<Result<_>>().unwrap()).unwrap()
    }

    fn base(modules: &[&str]) -> BaseTensors {
        let tensor = |module: &&str| (format!("{module}.weight"), Dtype::F32, vec![6, 10]);
        BaseTensors::new("model", modules.iter().map(tensor))
    }

    fn resolved(model: &[&str], layers: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
        let Resolved { adapter, notes } = resolve_module_names(&adapter(layers), &base(model))?;
        Ok((adapter.layers().iter().map(|layer| layer.module().to_string()).collect(), notes))
    }

    #[test]
    fn names_of_the_model_stay() {
        let (names, notes) = resolved(&["q", "a.q"], &["a.q"]).unwrap();
        assert_eq!((names, notes.len()), (vec!["a.q".to_string()], 0));
    }

    #[test]
    fn one_leading_component_is_added_or_dropped_for_all_layers() {
        let (names, notes) = resolved(&["t.h.0.q", "t.h.1.q"], &["h.0.q", "h.1.q"]).unwrap();
        assert_eq!(names, ["t.h.0.q", "t.h.1.q"]);
        assert_eq!(notes, ["t. was put before the adapter's names: the model's have it"]);
        let (names, notes) = resolved(&["h.0.q", "h.1.q"], &["t.h.1.q"]).unwrap();
        assert_eq!(names, ["h.1.q"]);
        assert_eq!(notes, ["t. was taken off the adapter's names: the model's lack it"]);
    }

    #[test]
    fn leading_components_are_not_guessed() {
        for (model, layers, says) in [
            // Two changes would do.
            (&["encoder.q", "decoder.q"][..], &["q"][..], "q matches no tensor; near are"),
            (&["q", "a.b.q"], &["b.q"], "b.q matches no tensor"),
            // One change is right for some layers only.
            (&["h.0.q", "h.1.q"], &["t.h.0.q", "t.h.2.q"], "t.h.0.q matches no tensor"),
            (&["h.0.q", "h.1.q"], &["t.h.0.q", "u.h.1.q"], "t.h.0.q matches no tensor"),
            (&["q", "a.q", "a.k"], &["q", "k"], "k matches no tensor"),
            // Two components are not one.
            (&["q"], &["a.b.q"], "a.b.q matches no tensor"),
            (&["a.b.q"], &["q"], "q matches no tensor"),
            (&["b.q"], &["a.q"], "a.q matches no tensor"),
        ] {
            let error = resolved(model, layers).expect_err("no place").to_string();
            assert!(error.starts_with("model: ") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn names_of_lycoris_get_the_model_s_dots() {
        let names =
            |model: &[&str]| resolved(model, &["lycoris_a_b", "lora_unet_c_d"]).map(|(names, _)| names);
        assert_eq!(names(&["a.b", "c_d", "e"]).unwrap(), ["a.b", "c_d"]);
        assert_eq!(names(&["lycoris_a_b", "c.d"]).unwrap(), ["lycoris_a_b", "c.d"]);
        let error = names(&["a.b", "a_b", "c.d"]).expect_err("two modules").to_string();
        assert!(error.contains("lycoris_a_b may be a.b or a_b"), "{error}");
        let error = names(&["a.c", "c.d"]).expect_err("no module").to_string();
        assert!(error.contains("lycoris_a_b matches no tensor; near are a.c, c.d"), "{error}");
    }

    #[test]
    fn an_error_lists_the_nearest_names_of_the_first_three_modules() {
        let model = ["h.0.query", "h.0.key", "h.1.query", "h.1.key"];
        let error = resolved(&model, &["h.0.key", "h.0.qury", "h.2.key"]).expect_err("two").to_string();
        assert_eq!(
            error,
            "model: h.0.qury matches no tensor; near are h.0.query, h.1.query, h.0.key; \
             h.2.key matches no tensor; near are h.0.key, h.1.key, h.0.query"
        );
        let error = resolved(&model, &["a", "b", "c", "d", "e"]).expect_err("five").to_string();
        assert!(error.ends_with("; and 2 more match nothing either"), "{error}");
        let error = resolved(&[], &["a"]).expect_err("no module").to_string();
        assert_eq!(error, "model: a matches no tensor, and the model has no module with a weight");
        let error = resolved(&["q"], &["lm_head"]).expect_err("tied").to_string();
        assert!(error.contains("lm_head has no weight of its own: it is tied"), "{error}");
        let error = resolved(&["q"], &["q.weight"]).expect_err("a tensor").to_string();
        assert!(error.contains("q.weight is a tensor of [6, 10], not a module with a weight"), "{error}");
    }
}
