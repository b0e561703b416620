//! The adapters of a merge: read, weighted, and with the model's names.

use kron_adapter::extras::{ChangeKind, Extras, Skipped};
use kron_adapter::resolve::{BaseModel, Resolved, resolve_extras, resolve_module_names};
use kron_adapter::{Adapter, Layer, Loaded};
use serde::Serialize;

use super::args::Args;
use crate::weighted::Weighted;
use crate::{Error, Result};

/// One adapter with the model's names.
pub struct Input {
    /// Path, for messages.
    pub path: String,
    /// Factor of everything that the adapter adds.
    pub weight: f64,
    /// The layers and the trained tensors.
    pub adapter: Adapter,
    /// Contents beyond them.
    pub extras: Extras,
}

/// The adapters of a merge, in their order.
#[derive(Default)]
pub struct Inputs {
    /// The adapters.
    pub all: Vec<Input>,
    /// Changes made while reading and matching, one sentence each.
    pub notes: Vec<String>,
    /// Names of tensors or modules that were not chosen.
    pub left_out: Vec<String>,
    /// Tensors that do not reach the output.
    pub skipped: Vec<SkippedTensor>,
}

/// Tensor of an adapter that does not reach the output.
#[derive(Debug, Serialize)]
pub struct SkippedTensor {
    /// Path of the adapter.
    pub adapter: String,
    #[serde(flatten)]
    pub tensor: Skipped,
}

/// An adapter with its own names.
pub struct Unresolved {
    /// Factor of everything that the adapter adds.
    pub weight: f64,
    /// The adapter.
    pub loaded: Loaded,
    /// Contents beyond it.
    pub extras: Extras,
}

/// Reads the adapters.
///
/// # Errors
/// An adapter is invalid, or holds what cannot be merged.
pub fn read(args: &Args) -> Result<Vec<Unresolved>> {
    let read = |Weighted { path, weight }: &Weighted| {
        let (mut loaded, extras) = match args.adapters.len() {
            1 => args.choice.read_whole(path, args.skip_unsupported)?,
            _ => args.choice.read_whole_each(path, args.skip_unsupported)?,
        };
        if let Some(names) = loaded.adapter.trained_summary().filter(|_| args.factors_only) {
            loaded.notes.push(format!("--factors-only leaves these trained tensors out: {names}"));
            loaded.left_out.extend(loaded.adapter.trained_tensors().iter().map(|t| t.name().to_string()));
            loaded.adapter = loaded.adapter.with_trained_tensors(Vec::new())?;
        }
        Ok(Unresolved { weight: *weight, loaded, extras })
    };
    args.adapters.iter().map(read).collect()
}

impl Inputs {
    /// Gives the modules of the adapters the model's names. With `skip_unsupported` tensors without a place in
    /// the model are left out and listed.
    ///
    /// # Errors
    /// An adapter does not match the model, or holds what cannot be merged into it.
    pub fn new(adapters: Vec<Unresolved>, base: &impl BaseModel, skip_unsupported: bool) -> Result<Self> {
        let (mut inputs, is_alone) = (Self::default(), adapters.len() == 1);
        for adapter in adapters {
            inputs.add(adapter, base, (skip_unsupported, is_alone))?;
        }
        Ok(inputs)
    }

    fn add(
        &mut self,
        adapter: Unresolved,
        base: &impl BaseModel,
        (skip_unsupported, is_alone): (bool, bool),
    ) -> Result<()> {
        let Unresolved { weight, loaded, extras } = adapter;
        let Loaded { path, mut adapter, mut notes, fan_in_fan_out, left_out, .. } = loaded;
        // An adapter without layers changes other tensors alone.
        let resolved = match adapter.layers().is_empty() {
            true => Resolved { adapter: adapter.clone(), notes: Vec::new() },
            false => resolve_module_names(&adapter, base)?,
        };
        notes.extend(resolved.notes);
        let (extras, renamed) =
            resolve_extras(extras, (&adapter, &resolved.adapter), base, skip_unsupported)?;
        notes.extend(renamed);
        adapter = resolved.adapter;
        check_orientation(&path, fan_in_fan_out, &adapter, &extras, base)?;
        check_weight(&path, weight, &adapter, &extras)?;
        let skipped = extras.skipped.iter().cloned();
        self.skipped.extend(skipped.map(|tensor| SkippedTensor { adapter: path.clone(), tensor }));
        self.left_out.extend(left_out);
        self.notes.extend(match is_alone {
            true => notes,
            false => notes.into_iter().map(|note| format!("{path}: {note}")).collect(),
        });
        self.all.push(Input { path, weight, adapter, extras });
        Ok(())
    }

    /// Number of layers of all adapters; a sum of terms is one, and so is a stack of experts.
    pub fn layers(&self) -> usize {
        self.all.iter().map(|input| input.adapter.modules() + input.extras.experts.len()).sum()
    }

    /// Number of trained tensors that replace the model's.
    pub fn replaced(&self) -> usize {
        self.all.iter().map(|input| input.adapter.trained_tensors().len()).sum()
    }

    /// Number of tensors beside the layers to which values are added.
    pub fn added(&self) -> usize {
        let changes = self.all.iter().flat_map(|input| &input.extras.changes);
        changes.filter(|change| matches!(change.kind(), ChangeKind::Add(_))).count()
    }
}

/// Fails if the adapter says that the weights are stored transposed, and the model does not.
fn check_orientation(
    path: &str,
    fan_in_fan_out: bool,
    adapter: &Adapter,
    extras: &Extras,
    base: &impl BaseModel,
) -> Result<()> {
    // A square weight would take the transposed ΔW without an error.
    let plain = |layer: &&Layer| {
        base.is_transposed(layer.module()) != Some(true) && !extras.embeddings.contains(layer.module())
    };
    match adapter.layers().iter().find(|layer| fan_in_fan_out && plain(layer)) {
        None => Ok(()),
        Some(layer) => Err(Error::data(format!(
            "{path}: fan_in_fan_out is true, but {} does not say that the weight of {} is stored transposed",
            base.name(),
            layer.module()
        ))),
    }
}

/// Fails if the adapter has a weight, and changes that no weight multiplies.
fn check_weight(path: &str, weight: f64, adapter: &Adapter, extras: &Extras) -> Result<()> {
    if weight == 1.0 {
        return Ok(());
    }
    if let Some(module) = extras.magnitudes.keys().next() {
        return Err(Error::data(format!(
            "{path} has the weight {weight}, but {module} is a layer of DoRA, which rescales the whole weight and takes 1 alone"
        )));
    }
    match adapter.trained_summary() {
        None => Ok(()),
        Some(names) => Err(Error::data(format!(
            "{path} has the weight {weight}, but trained tensors take the place of the model's and have none: {names}"
        ))),
    }
}
