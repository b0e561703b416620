//! Resolution of an adapter's module names to those of a model.

use std::path::Path;

use kron_adapter::lycoris;
use kron_adapter::{Adapter, Layer};

use crate::merge::base::Base;
use crate::{Error, Result};

/// Similar names that an error lists at most.
const MAX_LISTED: usize = 3;

/// Replaces the names that LyCORIS gave to modules by those of the model at `base`.
///
/// # Errors
/// The model cannot be read, two of its modules share a LyCORIS name, or it lacks a module.
pub fn resolve_module_names(adapter: &Adapter, base: &Path) -> Result<Adapter> {
    let base = Base::open(base)?;
    let adapter = lycoris::with_names_of(adapter, base.modules())?;
    let lacks = |module: &&str| base.find(&format!("{module}.weight")).is_none();
    let Some(module) = adapter.layers().iter().map(Layer::module).find(lacks) else { return Ok(adapter) };
    let what = if lycoris::is_lycoris(module) { "is LyCORIS's name for no module" } else { "is no module" };
    let near = match similar(&base.modules().collect::<Vec<_>>(), module) {
        near if near.is_empty() => ", which has none with a weight".into(),
        near => format!("; near are {near}"),
    };
    Err(Error::data(format!("{module} {what} of {}{near}", base.path())))
}

/// Lists the modules whose names are most similar to `module`, for an error message.
pub fn similar(modules: &[&str], module: &str) -> String {
    let mut near: Vec<_> = modules.iter().map(|name| (strsim::levenshtein(name, module), *name)).collect();
    near.sort_unstable();
    near.iter().take(MAX_LISTED).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}
