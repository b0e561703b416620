//! The linear layers of a model from the names and shapes of its tensors, whatever its family.
//!
//! Layers of one name but for the numbers in it, and of one size, are one kind: `model.layers.*.mlp.up_proj`.

use std::collections::{BTreeMap, BTreeSet};

use kron_adapter::lycoris::is_factor;
use kron_adapter::plan::{Linear, MAX_DIM, Model};
use kron_adapter::resolve::BaseModel;
use kron_adapter::text::{first_and_more, name};
use kron_core::LayerDims;
use safetensors::Dtype;

use super::linear_layers::Layers;
use crate::{Error, Result};

/// Parts of the last components of names of embeddings, which are look-up tables and not linear layers.
const EMBEDDINGS: [&str; 5] = ["embed", "wte", "wpe", "token_types", "relative_attention_bias"];

/// Returns the linear layers of a model.
///
/// # Errors
/// The model has none, or the file is an adapter.
pub fn scanned_layers(base: &impl BaseModel) -> Result<Layers> {
    let mut kinds: BTreeMap<(String, [usize; 2]), u32> = BTreeMap::new();
    let (mut embeddings, mut stacked, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    for tensor in base.tensor_names() {
        if is_factor(tensor) {
            return Err(Error::data(format!(
                "{} is an adapter, with the factor {}, but a plan is for a model",
                base.name(),
                name(tensor)
            )));
        }
        let module = tensor.strip_suffix(".weight");
        let linear = module.and_then(|module| Some((module, base.linear(module)?)));
        match linear {
            Some(_) if base.tensor(tensor).is_some_and(|(dtype, _)| is_packed(dtype)) => packed.push(tensor),
            Some((module, _)) if is_embedding(module) => embeddings.push(tensor),
            Some((module, LayerDims { d_out, d_in }))
                if [d_out, d_in].iter().all(|d| (1..=MAX_DIM).contains(d)) =>
            {
                let count = kinds.entry((starred(module), [d_out, d_in])).or_default();
                *count = count.saturating_add(1);
            }
            _ if base.tensor(tensor).is_some_and(|(_, shape)| shape.len() > 1) => stacked.push(tensor),
            _ => {}
        }
    }
    let mut notes = Vec::new();
    let lists = [
        (embeddings, "embeddings are look-up tables, and left out"),
        (packed, "weights in packed blocks do not have their layer's sizes, and are left out"),
        (stacked, "convolutions, stacked experts and other tensors are no linear layers, and left out"),
    ];
    for (mut names, what) in lists {
        names.sort_unstable();
        notes.extend(first_and_more(names.into_iter().map(name)).map(|names| format!("{what}: {names}")));
    }
    let hidden = hidden(&kinds).ok_or_else(|| {
        Error::data(format!("{} has no linear layer: no tensor NAME.weight of two dimensions", base.name()))
    })?;
    let names = short_names(kinds.keys().map(|(pattern, _)| pattern.as_str()));
    let linears = kinds.iter().map(|((pattern, [d_out, d_in]), count)| {
        let dims = LayerDims { d_out: *d_out, d_in: *d_in };
        Linear::new(names.get(pattern.as_str()).copied().unwrap_or(pattern), dims, *count)
    });
    let linears = linears.collect::<Result<Vec<_>>>()?;
    Ok(Layers { model: Model::new(base.name(), hidden, linears, 0)?, notes })
}

/// True for the type of bytes or words that hold several values each. I8 and the float8 types hold one.
const fn is_packed(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::U8 | Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64)
}

/// True for a module that is a look-up table by its name; an `x_embedder` is a linear layer.
pub fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    let is_table = EMBEDDINGS.iter().any(|part| last.contains(part)) && !last.ends_with("embedder");
    is_table || last == "token_embd" || last == "position_embd"
}

/// Returns the name with a star for each number.
fn starred(module: &str) -> String {
    let star = |part: &str| {
        if part.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { name(part).into_owned() }
    };
    module.split('.').map(star).collect::<Vec<_>>().join(".")
}

/// Returns the width that most layers have at their input, the larger one of two.
fn hidden(kinds: &BTreeMap<(String, [usize; 2]), u32>) -> Option<usize> {
    let mut widths: BTreeMap<usize, u64> = BTreeMap::new();
    kinds.iter().for_each(|((_, [_, d_in]), count)| *widths.entry(*d_in).or_default() += u64::from(*count));
    widths.into_iter().max_by_key(|(width, count)| (*count, *width)).map(|(width, _)| width)
}

/// Returns for each pattern its shortest end from a component on that no other pattern has.
fn short_names<'a>(patterns: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    let patterns: BTreeSet<&str> = patterns.collect();
    let ends = |pattern: &'a str| {
        pattern.rmatch_indices('.').map(move |(at, _)| &pattern[at + 1..]).chain([pattern])
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    patterns.iter().copied().flat_map(ends).for_each(|end| *counts.entry(end).or_default() += 1);
    let short = |pattern: &'a str| {
        let mut own = ends(pattern).filter(|end| counts.get(end) == Some(&1) && !end.starts_with('*'));
        own.next().unwrap_or(pattern)
    };
    patterns.iter().copied().map(|pattern| (pattern, short(pattern))).collect()
}

#[cfg(test)]
mod tests {
    use kron_adapter::resolve::BaseTensors;

    use super::*;

    fn scanned(tensors: &[(&str, &[usize])]) -> Result<Layers> {
        let tensors = tensors.iter().map(|(name, shape)| (*name, Dtype::BF16, shape.to_vec()));
        scanned_layers(&BaseTensors::new("model", tensors))
    }

    #[test]
    fn layers_of_one_name_and_size_are_one_kind() {
        let Layers { model, notes } = scanned(&[
            ("model.embed_tokens.weight", &[50, 8]),
            ("model.layers.0.self_attn.q_proj.weight", &[16, 8]),
            ("model.layers.1.self_attn.q_proj.weight", &[16, 8]),
            ("model.layers.10.self_attn.q_proj.weight", &[24, 8]),
            ("model.layers.0.mlp.experts.0.up.weight", &[12, 8]),
            ("model.layers.0.mlp.experts.1.up.weight", &[12, 8]),
            ("model.layers.0.mlp.experts.gate_up_proj", &[4, 24, 8]),
            ("model.layers.0.norm.weight", &[8]),
            ("model.visual.blocks.0.up.weight", &[40, 10]),
            ("model.visual.patch.weight", &[10, 3, 2, 2]),
            ("model.visual.proj.weight", &[8, 10, 1, 1]),
            ("lm_head.weight", &[50, 8]),
        ])
        .unwrap();
        let found: Vec<_> =
            model.linears().iter().map(|l| (l.name(), l.dims().d_out, l.dims().d_in, l.count())).collect();
        assert_eq!(
            found,
            [
                ("lm_head", 50, 8, 1),
                ("experts.*.up", 12, 8, 2),
                ("q_proj", 16, 8, 2),
                ("q_proj", 24, 8, 1),
                ("blocks.*.up", 40, 10, 1),
                ("proj", 8, 10, 1),
            ]
        );
        assert_eq!(model.hidden(), 8);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].ends_with("left out: model.embed_tokens.weight"), "{notes:?}");
        assert!(notes[1].ends_with("experts.gate_up_proj and 1 more"), "{notes:?}");
    }

    /// A weight of bitsandbytes in four bits is a column of bytes, and an embedder of a diffusion model no table.
    #[test]
    fn packed_weights_are_no_layers_and_embedders_are() {
        let tensors = [
            ("x_embedder.weight", Dtype::BF16, vec![12, 8]),
            ("q.weight", Dtype::U8, vec![48, 1]),
            ("q.weight.absmax", Dtype::F32, vec![2]),
            ("k.weight", Dtype::I8, vec![8, 8]),
        ];
        let Layers { model, notes } = scanned_layers(&BaseTensors::new("model", tensors)).unwrap();
        let names: Vec<_> = model.linears().iter().map(Linear::name).collect();
        assert_eq!(names, ["k", "x_embedder"]);
        assert_eq!(
            notes,
            ["weights in packed blocks do not have their layer's sizes, and are left out: q.weight"]
        );
    }

    #[test]
    fn a_file_without_a_linear_layer_is_refused() {
        for tensors in [&[][..], &[("norm.weight", &[4][..])], &[("wte.weight", &[4, 4])], &[("q", &[4, 4])]]
        {
            let error = scanned(tensors).expect_err("no layer").to_string();
            assert!(error.contains("model has no linear layer"), "{error}");
        }
    }
}
