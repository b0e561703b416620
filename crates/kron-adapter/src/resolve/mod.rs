//! Resolution of an adapter's module names: the base model's tensor for each layer.
//!
//! ```text
//! adapter's modules ─ underscores undone ─ starts of names added, dropped or replaced ─┐
//! base model's tensor names and shapes ────────────────────────────────────────────────┴▶ placements
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
mod other_names;
mod parts;
mod placement;
mod root;
mod substitution;
mod underscored;
mod unmatched;

pub use base::{BaseModel, BaseTensors, TIED_PAIRS};
pub use experts::{PlacedExperts, place_experts};
pub use extras::{place_change, resolve_extras};
pub use placement::{Placement, place_layers, place_trained_tensors};

use crate::{Adapter, Layer, Result, Suggestion};

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
/// Names that LyCORIS or a trainer wrote with underscores get the model's dots back. If no
/// layer has a place then, one leading component is added to all names or
/// dropped from all, provided that exactly one such change gives every layer a place. Else each tower without
/// any place gets the start of its names replaced, provided that exactly one tower of the model takes all its layers
/// and that one start has all components of the other.
/// The same change is made to a trained tensor whose name the model has only after it.
///
/// # Errors
/// Fails if two modules of the model have one name in LyCORIS, if two parts of the adapter have one module, and if a
/// layer has no weight in the model; the error lists the nearest names.
pub fn resolve_module_names(adapter: &Adapter, base: &impl BaseModel) -> Result<Resolved> {
    let modules: Vec<&str> = base.modules().collect();
    let given = adapter;
    let (mut adapter, mut notes) =
        underscored::with_dots(adapter, &modules).map_err(|e| e.about(base.name()))?;
    if let Some((aligned, note)) = root::aligned(&adapter, &modules, base) {
        adapter = aligned;
        notes.push(note);
    } else {
        let (placed, changes) = substitution::with_towers(&adapter, &modules, base)?;
        adapter = placed;
        notes.extend(changes);
    }
    // A head that is the embedding has its name, though no weight of its own.
    let has_place = |layer: &Layer| {
        base.weight(layer.module()).is_some()
            || base.tied_embedding(&base::weight_name(layer.module())).is_some()
    };
    let is_placed: Vec<bool> = adapter.layers().iter().map(has_place).collect();
    let lost = adapter.layers().iter().zip(&is_placed).filter(|(_, is_placed)| !**is_placed);
    let missing: Vec<_> = lost.map(|(layer, _)| Layer::module(layer)).collect();
    if missing.is_empty() {
        return Ok(Resolved { adapter, notes });
    }
    let error = unmatched::error(base, &modules, &missing);
    Err(match parts::described(given, &is_placed) {
        Some(parts) => error.and(parts).with(Suggestion::Only),
        None => error,
    })
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
            // Another start is another module.
            (&["b.q"], &["a.q"], "a.q matches no tensor"),
            (&["encoder.layers.0.q"], &["decoder.layers.0.q"], "decoder.layers.0.q matches no tensor"),
            // Two towers of the model would do.
            (
                &["language_model.model.layers.0.q", "vision_model.model.layers.0.q"],
                &["model.layers.0.q"],
                "model.layers.0.q matches no tensor",
            ),
        ] {
            let error = resolved(model, layers).expect_err("no place").to_string();
            assert!(error.starts_with("model: ") && error.contains(says), "{error}");
        }
    }

    /// Names on disk and in memory of models with vision, and of adapters that were trained for the text alone.
    #[test]
    fn each_tower_gets_the_start_that_the_model_has() {
        for (model, layers, want, said) in [
            (
                &["model.language_model.layers.0.q", "model.visual.blocks.0.qkv"][..],
                &["model.layers.0.q"][..],
                &["model.language_model.layers.0.q"][..],
                &["model. became model.language_model. in the adapter's names, as the model has it"][..],
            ),
            // Gemma 3: a vision tower with modules of the same names.
            (
                &[
                    "language_model.model.layers.0.q",
                    "vision_tower.vision_model.encoder.layers.0.q",
                    "lm_head",
                ],
                &[
                    "model.language_model.layers.0.q",
                    "model.vision_tower.vision_model.encoder.layers.0.q",
                    "lm_head",
                ],
                &[
                    "language_model.model.layers.0.q",
                    "vision_tower.vision_model.encoder.layers.0.q",
                    "lm_head",
                ],
                &[
                    "model. was taken off the adapter's names: the model's lack it",
                    "model.language_model. became language_model.model. in the adapter's names, as the model has it",
                ],
            ),
            // Qwen2.5-VL on disk.
            (
                &["model.layers.0.q", "visual.blocks.0.attn.qkv", "visual.merger.mlp.0"],
                &[
                    "model.language_model.layers.0.q",
                    "model.visual.blocks.0.attn.qkv",
                    "model.visual.merger.mlp.0",
                ],
                &["model.layers.0.q", "visual.blocks.0.attn.qkv", "visual.merger.mlp.0"],
                &[
                    "model. was taken off the adapter's names: the model's lack it",
                    "model.language_model. became model. in the adapter's names, as the model has it",
                ],
            ),
            (
                &["a.b.q"],
                &["q"],
                &["a.b.q"],
                &["a.b. was put before the adapter's names: the model's have it"],
            ),
        ] {
            let (names, notes) = resolved(model, layers).unwrap();
            assert_eq!(
                (names, notes),
                (want.iter().map(|s| s.to_string()).collect(), said.iter().map(|s| s.to_string()).collect())
            );
        }
    }

    /// The text layers of Llama 4 have the names of its vision layers, and other sizes.
    #[test]
    fn a_shape_tells_two_towers_apart() {
        let model = BaseTensors::new(
            "model",
            [
                ("vision_model.model.layers.0.q.weight", Dtype::F32, vec![4, 4]),
                ("language_model.model.layers.0.q.weight", Dtype::F32, vec![6, 10]),
            ],
        );
        let resolved = resolve_module_names(&adapter(&["model.layers.0.q"]), &model).unwrap();
        assert_eq!(resolved.adapter.layers()[0].module(), "language_model.model.layers.0.q");
    }

    #[test]
    fn names_without_dots_find_their_module_behind_any_prefix_and_root() {
        let q = "blocks.0.to_q";
        for (model, layers, want, said) in [
            (
                &[q, "blocks.1.to_q"][..],
                &["lora_transformer_blocks_0_to_q", "lora_transformer_blocks_1_to_q"][..],
                q,
                1,
            ),
            (&[q], &["lora_prior_unet_blocks_0_to_q"], q, 1),
            (&[q], &["mine_blocks_0_to_q"], q, 1),
            (
                &["decoder.blocks.0.to_q", "decoder.norm"],
                &["lycoris_blocks_0_to_q"],
                "decoder.blocks.0.to_q",
                1,
            ),
            (&["a.blocks.0.to_q"], &["lora_transformer_blocks_0_to_q"], "a.blocks.0.to_q", 2),
        ] {
            let (names, notes) = resolved(model, layers).unwrap();
            assert_eq!((names[0].as_str(), notes.len()), (want, said), "{notes:?}");
        }
        for (model, layers) in [
            (&["a.to_q", "b.to_q"][..], &["lycoris_to_q"][..]),
            (&["blocks.0.to_q", "to_q"], &["lora_x_blocks_0_to_q"]),
        ] {
            let error = resolved(model, layers).expect_err("two places").to_string();
            assert!(error.contains("matches no tensor"), "{error}");
        }
    }

    #[test]
    fn parts_for_other_models_are_named() {
        for (model, layers, says) in [
            (
                &["blocks.0.q"][..],
                &["lora_unet_blocks_0_q", "lora_te1_layers_0_q"][..],
                "the model has all modules of lora_unet_ (1) and none of lora_te1_ (1)",
            ),
            (
                &["blocks.0.q", "blocks.1.q"],
                &["unet.blocks.0.q", "unet.blocks.1.q", "text_encoder.layers.0.q"],
                "the model has all modules of unet. (2) and none of text_encoder. (1)",
            ),
            (
                &["layers.0.q"],
                &["lora_te1_layers_0_q", "lora_te2_layers_0_q"],
                "both have a layer for layers.0.q",
            ),
        ] {
            let error = resolved(model, layers).expect_err("several models");
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.suggestion(), Some(Suggestion::Only));
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
