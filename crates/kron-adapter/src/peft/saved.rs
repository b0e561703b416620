//! Whole modules that PEFT trains beside the adapter, `modules_to_save`.
//!
//! Their tensors have the parameters' names in the model, `base_model.model.classifier.weight`.

use std::collections::BTreeSet;

use super::names::PREFIX;
use crate::limits::Limits;
use crate::tensor_data::TensorData;
use crate::trained::{check_shape, modules};
use crate::{Adapter, Error, Result, Tensors, TrainedTensor, text};

/// Modules that PEFT adds to `modules_to_save` by itself, for these tasks; inside one of them it saves no other.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];
const CLASSIFYING: [&str; 2] = ["SEQ_CLS", "TOKEN_CLS"];

/// Reason against a tensor that is neither a factor nor saved.
pub const UNSAVED: &str = "it is not a factor of ΔW and lies in no module in modules_to_save, and leaving it out would change the model";

/// Names of the factors, and the trained tensors.
pub type Split = (Vec<String>, Vec<TrainedTensor>);

/// Takes the tensors of `modules_to_save` out of a folder's; the other names are left for the factors.
///
/// # Errors
/// Fails on a tensor that is no [`TrainedTensor`] in float32, and if matching the names takes more work than the
/// file may.
pub fn split(
    tensors: &Tensors,
    saved: &[String],
    is_factor: impl Fn(&str) -> bool,
    limits: &mut Limits,
) -> Result<Split> {
    let (mut factors, mut trained) = (Vec::new(), Vec::new());
    for stored in tensors.names() {
        let name = stored.strip_prefix(PREFIX).filter(|_| !saved.is_empty() && !is_factor(&stored));
        if let Some(name) = name {
            let work = modules(name).count() as u128 * saved.len() as u128;
            limits.work.spend("matching modules_to_save", work)?;
            if is_saved(name, saved) {
                trained.push(read(tensors, &stored, name)?);
                continue;
            }
        }
        factors.push(stored);
    }
    Ok((factors, trained))
}

/// True if a module that the tensor lies in ends with one of these names, as PEFT compares them.
fn is_saved(tensor: &str, saved: &[String]) -> bool {
    let Some((module, _)) = tensor.rsplit_once('.') else { return false };
    modules(module).any(|module| saved.iter().any(|name| !name.is_empty() && module.ends_with(name.as_str())))
}

fn read(tensors: &Tensors, stored: &str, name: &str) -> Result<TrainedTensor> {
    let refused = |e: Error| e.about(text::name(stored)).about(tensors.path());
    let shape = &tensors.info(stored)?.shape;
    check_shape(shape).map_err(refused)?;
    TrainedTensor::new(name, shape.as_slice(), tensors.finite_f32(stored, "a trained tensor")?)
        .map_err(|e| e.about(tensors.path()))
}

/// Returns a note on the head of `kron-train`, which no folder takes.
pub fn left_out(adapter: &Adapter) -> Option<String> {
    let head = adapter.trained_tensors().iter().filter(|tensor| is_own_head(adapter, tensor));
    let names = text::first_and_more(head.map(TrainedTensor::name))?;
    Some(format!(
        "PEFT saves only modules that the model has, so the head that kron-train trained is left out: {names}"
    ))
}

/// True for a tensor of the head of `kron-train`: PEFT would take `lm_head` for the module `head`, by its end.
fn is_own_head(adapter: &Adapter, tensor: &TrainedTensor) -> bool {
    let module = tensor.name().rsplit_once('.').map(|(module, _)| module);
    module == Some(Adapter::HEAD) && adapter.metadata().contains_key(Adapter::LABELS_KEY)
}

/// Returns the trained tensors that a folder takes.
fn carried(adapter: &Adapter) -> impl Iterator<Item = &TrainedTensor> {
    adapter.trained_tensors().iter().filter(|tensor| !is_own_head(adapter, tensor))
}

/// Returns a note if the configuration has such modules, but the file none of their tensors.
pub fn missing(saved: &[String], trained: &[TrainedTensor]) -> Option<String> {
    let names = saved.iter().filter(|_| trained.is_empty()).map(|name| text::name(name));
    let names = text::first_and_more(names)?;
    Some(format!("modules_to_save has {names}, but the file has no tensor of them"))
}

/// Puts the trained tensors into an adapter, with the names of their classes.
///
/// # Errors
/// Fails on a tensor in a module that has a layer.
pub fn with_tensors(adapter: Adapter, trained: Vec<TrainedTensor>, from: &Tensors) -> Result<Adapter> {
    let labels = from.metadata(Adapter::LABELS_KEY).filter(|_| !trained.is_empty());
    let mut metadata = adapter.metadata().clone();
    metadata.extend(labels.map(|labels| (Adapter::LABELS_KEY.into(), labels.into())));
    let adapter = adapter.with_metadata(metadata).and_then(|adapter| adapter.with_trained_tensors(trained));
    adapter.map_err(|e| e.about(from.path()))
}

/// Returns the trained tensors to write, by PEFT's names.
pub fn trained(adapter: &Adapter) -> impl Iterator<Item = (String, TensorData<'_>)> {
    carried(adapter).map(|tensor| (format!("{PREFIX}{}", tensor.name()), TensorData::Trained(tensor)))
}

/// Returns the text for the weights' metadata: PEFT's configuration has no place for the names of classes.
pub fn labels(adapter: &Adapter) -> Option<(&'static str, &str)> {
    let labels = adapter.metadata().get(Adapter::LABELS_KEY)?;
    carried(adapter).next().map(|_| (Adapter::LABELS_KEY, labels.as_str()))
}

/// Returns the modules whose tensors the adapter holds, for `modules_to_save`.
///
/// # Errors
/// Fails on a tensor in no module, which PEFT cannot save.
pub fn saved_modules(adapter: &Adapter) -> Result<BTreeSet<&str>> {
    let task = adapter.metadata().get("task_type");
    let classifying = task.is_some_and(|task| CLASSIFYING.contains(&task.as_str()));
    carried(adapter).map(|tensor| saved_module(tensor.name(), classifying)).collect()
}

fn saved_module(tensor: &str, classifying: bool) -> Result<&str> {
    let Some((module, _)) = tensor.rsplit_once('.') else {
        return Err(Error::data(format!(
            "trained tensor {tensor} lies in no module, but PEFT saves whole modules"
        )));
    };
    let is_classifier = |module: &&str| {
        let last = module.rsplit('.').next().unwrap_or(module);
        classifying && CLASSIFIERS.contains(&last)
    };
    Ok(modules(module).find(is_classifier).unwrap_or(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_saved_with_a_module_that_ends_with_a_name() {
        let saved = ["score".to_string(), "a.head".into(), String::new()];
        for (tensor, is) in [
            ("score.weight", true),
            ("m.score.weight", true),
            ("score.dense.bias", true),
            // PEFT compares ends of names, not components.
            ("underscore.weight", true),
            ("a.head.weight", true),
            ("b.head.weight", false),
            ("scores.weight", false),
            ("m.score", false),
            ("score", false),
        ] {
            assert_eq!(is_saved(tensor, &saved), is, "{tensor}");
        }
    }
}
