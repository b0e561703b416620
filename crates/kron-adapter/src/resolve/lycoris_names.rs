//! Names that LyCORIS wrote with an underscore for each dot, with the model's dots again.

use std::collections::HashMap;

use crate::lycoris::without_prefix;
use crate::{Adapter, Error, Result};

/// Returns the adapter with the model's own names for modules that have
/// LyCORIS's; a module that the model does not have keeps its name.
pub(super) fn with_dots(adapter: &Adapter, modules: &[&str]) -> Result<Adapter> {
    let mut own: HashMap<String, Vec<&str>> = HashMap::new();
    for module in modules {
        let flat = without_prefix(module).map_or_else(|| module.replace('.', "_"), Into::into);
        own.entry(flat).or_default().push(module);
    }
    let layers = adapter.layers().iter().map(|layer| {
        match without_prefix(layer.module()).and_then(|flat| own.get(flat)).map(Vec::as_slice) {
            None | Some([]) => Ok(layer.clone()),
            Some([module]) => layer.renamed(*module),
            Some([one, two, ..]) => Err(Error::data(format!(
                "{} may be {one} or {two}: LyCORIS writes both names so, with an underscore for a dot",
                layer.module()
            ))),
        }
    });
    adapter.with_layers(layers.collect::<Result<_>>()?)
}
