//! The model's own names for an adapter's modules.

use std::path::Path;

use kron_adapter::lycoris;
use kron_adapter::{Adapter, Layer};

use crate::merge::base::Base;
use crate::{Error, Result};

/// How many near names an error lists.
const LISTED: usize = 3;

/// The adapter with the names of the model at `base` for the modules that LyCORIS named.
///
/// # Errors
/// A model that cannot be read, a name that two of its modules become, and a
/// module that it does not have.
pub fn named(adapter: &Adapter, base: &Path) -> Result<Adapter> {
    let base = Base::open(base)?;
    let adapter = lycoris::with_names_of(adapter, base.modules())?;
    let lacks = |module: &&str| base.find(&format!("{module}.weight")).is_none();
    let Some(module) = adapter.layers().iter().map(Layer::module).find(lacks) else { return Ok(adapter) };
    let what = if lycoris::is_lycoris(module) { "is LyCORIS's name for no module" } else { "is no module" };
    let near = match near(&base.modules().collect::<Vec<_>>(), module) {
        near if near.is_empty() => ", which has none with a weight".into(),
        near => format!("; near are {near}"),
    };
    Err(Error::data(format!("{module} {what} of {}{near}", base.path())))
}

/// The modules whose names are nearest to `module`, for an error to list.
pub fn near(modules: &[&str], module: &str) -> String {
    let mut near: Vec<_> = modules.iter().map(|name| (strsim::levenshtein(name, module), *name)).collect();
    near.sort_unstable();
    near.iter().take(LISTED).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}
