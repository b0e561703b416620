//! The error about modules that a model does not have, with the nearest names.

use super::base::BaseModel;
use crate::Error;
use crate::dotted_path::MAX_NAME;
use crate::text::name;

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
    // A distance takes as many steps as the product of the lengths, and a module's name is short.
    let names = modules.iter().filter(|name| name.len() <= MAX_NAME);
    let mut near: Vec<_> = names.map(|name| (strsim::levenshtein(name, module), *name)).collect();
    near.sort_unstable();
    near.iter().take(LISTED).map(|(_, near)| name(near)).collect::<Vec<_>>().join(", ")
}
