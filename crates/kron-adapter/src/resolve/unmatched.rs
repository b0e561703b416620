//! The error about modules and tensors that a model does not have, with the nearest names.

use super::base::{BaseModel, can_be_tied};
use crate::text::name;
use crate::{Error, Result};

/// Number of modules that an error lists, and of near names for each.
const LISTED: usize = 3;

/// Returns one sentence that names the modules and the nearest ones of the model.
pub(super) fn error(base: &impl BaseModel, modules: &[&str], missing: &[&str]) -> Error {
    let listed = missing.iter().take(LISTED);
    sentence(base, listed.map(|module| described(base, modules, module)).collect(), missing.len())
}

/// Returns one sentence that names trained tensors and the nearest ones of the model.
///
/// # Errors
/// Fails if the configuration contradicts itself.
pub(super) fn tensors_error(base: &impl BaseModel, missing: &[&str]) -> Result<Error> {
    let tied = base.is_tied()?;
    let names: Vec<&str> = base.tensor_names().collect();
    let described = |tensor: &&str| match tensor.strip_suffix(".weight") {
        Some(module) if tied && can_be_tied(module) => format!(
            "trained tensor {} has no tensor of its own: input embedding and output head are one tensor; untie them first (tie_word_embeddings)",
            name(tensor)
        ),
        _ => {
            format!("trained tensor {} matches no tensor; near are {}", name(tensor), nearest(&names, tensor))
        }
    };
    Ok(sentence(base, missing.iter().take(LISTED).map(described).collect(), missing.len()))
}

/// Joins the first of so many descriptions.
fn sentence(base: &impl BaseModel, mut said: Vec<String>, count: usize) -> Error {
    if count > LISTED {
        said.push(format!("and {} more match nothing either", count - LISTED));
    }
    Error::data(format!("{}: {}", base.name(), said.join("; ")))
}

fn described(base: &impl BaseModel, modules: &[&str], module: &str) -> String {
    let own = name(module);
    if let Some((_, shape)) = base.tensor(module) {
        return format!(
            "{own} is a tensor of {shape:?}, not a module with a weight: stacked weights take no adapter of one layer"
        );
    }
    if module.rsplit('.').next() == Some("lm_head") {
        return format!(
            "{own} has no weight of its own: it is tied to the embedding, which folding would change too"
        );
    }
    if modules.is_empty() {
        return format!("{own} matches no tensor, and the model has no module with a weight");
    }
    format!("{own} matches no tensor; near are {}", nearest(modules, module))
}

/// Returns the modules whose names are nearest to `module`, by edit distance.
fn nearest(modules: &[&str], module: &str) -> String {
    let near = crate::text::nearest(modules.iter().copied(), module, LISTED);
    near.into_iter().map(name).collect::<Vec<_>>().join(", ")
}
