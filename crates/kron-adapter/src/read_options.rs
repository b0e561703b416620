//! Choices among what one file holds.

use crate::{Error, Loaded, Result, text};

/// Choices among what one file holds.
///
/// ```no_run
/// use kron_adapter::{ReadOptions, read_with};
///
/// let options = ReadOptions { only: Some("lora_te1_".into()), ..Default::default() };
/// let loaded = read_with("sdxl.safetensors", &options)?;
/// println!("{} layers, {} tensors left out", loaded.adapter.layers().len(), loaded.left_out.len());
/// # Ok::<(), kron_adapter::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Name of the adapter to read where the tensors' names have those of several, as in `lora_A.NAME.weight`.
    pub adapter_name: Option<String>,
    /// Start of the names of the modules to read, where a file holds parts for several models; with or without
    /// PEFT's `base_model.model.`.
    pub only: Option<String>,
}

impl ReadOptions {
    /// Keeps the chosen layers of an adapter whose format has whole names.
    ///
    /// # Errors
    /// Fails if the choice matches nothing.
    pub(crate) fn choose_layers(&self, loaded: Loaded) -> Result<Loaded> {
        let about = loaded.path.clone();
        if let Some(name) = &self.adapter_name {
            return Err(Error::usage(format!(
                "{about} has no adapter {}: its format has no names of adapters",
                text::name(name)
            )));
        }
        let Some(only) = &self.only else { return Ok(loaded) };
        let adapter = &loaded.adapter;
        let is_chosen = |name: &str| name.starts_with(only.as_str());
        let layers: Vec<_> =
            adapter.layers().iter().filter(|layer| is_chosen(layer.module())).cloned().collect();
        if layers.is_empty() {
            return Err(Error::usage(format!(
                "{about} has no module whose name starts with {}; the first is {}",
                text::name(only),
                adapter.layers()[0].module()
            )));
        }
        let trained = adapter.trained_tensors();
        let all = adapter.layers().iter().map(|layer| layer.module()).chain(trained.iter().map(|t| t.name()));
        let left_out = all.filter(|name| !is_chosen(name)).map(Into::into).collect();
        let trained = trained.iter().filter(|tensor| is_chosen(tensor.name())).cloned().collect();
        let adapter = adapter.clone().with_trained_tensors(Vec::new())?.with_layers(layers)?;
        Ok(Loaded { adapter: adapter.with_trained_tensors(trained)?, left_out, ..loaded })
    }
}
