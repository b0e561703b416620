//! The error about modules that a model does not have, with the nearest names.

use super::base::BaseModel;
use crate::Error;

/// Number of modules that an error lists, and of near names for each.
const LISTED: usize = 3;

/// Returns one sentence that names the modules and the nearest ones of the model.
pub(super) fn error(base: &impl BaseModel, modules: &[&str], missing: &[&str]) -> Error {
    let listed = missing.iter().take(LISTED);
    let mut said: Vec<String> = listed.map(|module| described(base, modules, module)).collect();
    if missing.len() > LISTED {
        said.push(format!("and {} more match nothing either", missing.len() - LISTED));
    }
    Error::data(format!("{}: {}", base.name(), said.join("; ")))
}

fn described(base: &impl BaseModel, modules: &[&str], module: &str) -> String {
    if let Some((_, shape)) = base.tensor(module) {
        return format!(
            "{module} is a tensor of {shape:?}, not a module with a weight: stacked weights take no adapter of one layer"
        );
    }
    if module.rsplit('.').next() == Some("lm_head") {
        return format!(
            "{module} has no weight of its own: it is tied to the embedding, which folding would change too"
        );
    }
    if modules.is_empty() {
        return format!("{module} matches no tensor, and the model has no module with a weight");
    }
    format!("{module} matches no tensor; near are {}", nearest(modules, module))
}

/// Returns the modules whose names are nearest to `module`, by edit distance.
fn nearest(modules: &[&str], module: &str) -> String {
    let mut near: Vec<_> = modules.iter().map(|name| (strsim::levenshtein(name, module), *name)).collect();
    near.sort_unstable();
    near.iter().take(LISTED).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}
