//! Tensors that PEFT trains beside the adapter: whole modules, biases, and rows of embeddings.
//!
//! ```text
//! modules_to_save           base_model.model.classifier.weight
//! bias                      base_model.model.q.base_layer.bias, base_model.model.norm.bias
//! trainable_token_indices   base_model.model.embed.token_adapter.trainable_tokens_delta
//! ```

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::names::PREFIX;
use super::tokens::{self, TokenIndices};
use crate::left_out::LeftOut;
use crate::limits::Limits;
use crate::tensor_data::TensorData;
use crate::trained::{check_shape, modules};
use crate::{Adapter, Error, Result, Tensors, TrainedTensor, text};

/// Modules that PEFT adds to `modules_to_save` by itself, for these tasks; inside one of them it saves no other.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];
const CLASSIFYING: [&str; 2] = ["SEQ_CLS", "TOKEN_CLS"];

const BIAS: &str = "bias";
/// Component that PEFT puts before the parameters of an adapted layer.
const BASE_LAYER: &str = "base_layer";

/// Reason against a tensor that is neither a factor nor saved.
pub const UNSAVED: &str = "it is not a factor of ΔW and lies in no module in modules_to_save, and leaving it out would change the model";

/// Names of the factors, and the trained tensors.
pub type Split = (Vec<String>, Vec<TrainedTensor>);

/// Fields of a configuration about tensors that were trained beside the factors.
pub struct Wanted<'a> {
    /// Names of whole modules, or their ends.
    pub modules: &'a [String],
    /// True if biases were trained.
    pub biases: bool,
    /// Indices of trained tokens.
    pub tokens: &'a TokenIndices,
}

/// Takes the trained tensors out of a folder's; the other names are left for the factors.
///
/// # Errors
/// Fails on a tensor that is no [`TrainedTensor`] in float32, and if matching the names takes more work than the
/// file may.
pub fn split(
    tensors: &Tensors,
    wanted: &Wanted,
    is_factor: impl Fn(&str) -> bool,
    limits: &mut Limits,
) -> Result<Split> {
    let saved = wanted.modules;
    let (mut factors, mut trained) = (Vec::new(), Vec::new());
    for stored in tensors.names() {
        let Some(name) = stored.strip_prefix(PREFIX).filter(|_| !is_factor(&stored)) else {
            factors.push(stored);
            continue;
        };
        limits.work.spend("matching modules_to_save", modules(name).count() as u128 * saved.len() as u128)?;
        if let Some(module) = name.strip_suffix(tokens::END) {
            trained.push(tokens::read(tensors, &stored, module, wanted.tokens)?);
        } else if let Some(module) = biased(name).filter(|_| wanted.biases) {
            trained.push(read(tensors, &stored, &format!("{module}.{BIAS}"))?);
        } else if is_saved(name, saved) {
            trained.push(read(tensors, &stored, name)?);
        } else {
            factors.push(stored);
        }
    }
    Ok((factors, trained))
}

/// Returns the module of a bias, without the wrapper of an adapted one.
fn biased(name: &str) -> Option<&str> {
    let module = name.strip_suffix(BIAS)?.strip_suffix('.')?;
    let module = module.strip_suffix(BASE_LAYER).map_or(module, |module| module.trim_end_matches('.'));
    (!module.ends_with("lora_B") && !module.is_empty()).then_some(module)
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

/// Returns the tensors that no folder takes, and those that one of LoKr does not.
pub fn left_out(adapter: &Adapter, is_lora: bool) -> Vec<LeftOut> {
    let head = LeftOut::of(
        adapter,
        "PEFT saves only modules that the model has, and not the head that kron-train trained",
        |tensor| is_own_head(adapter, tensor),
    );
    let parts = LeftOut::of(adapter, "PEFT's LoKr has neither biases nor rows of embeddings", |tensor| {
        !is_lora && is_part(adapter, tensor, is_lora)
    });
    head.into_iter().chain(parts).collect()
}

/// True for a tensor of the head of `kron-train`: PEFT would take `lm_head` for the module `head`, by its end.
fn is_own_head(adapter: &Adapter, tensor: &TrainedTensor) -> bool {
    let module = tensor.name().rsplit_once('.').map(|(module, _)| module);
    module == Some(Adapter::HEAD) && adapter.metadata().contains_key(Adapter::LABELS_KEY)
}

/// True for rows of a tensor and for the bias of an adapted module: no whole module. A LoRA's folder has a field for
/// other biases without their weights too.
fn is_part(adapter: &Adapter, tensor: &TrainedTensor, is_lora: bool) -> bool {
    let of_layer = || biased(tensor.name()).is_some_and(|module| adapter.layer(module).is_some());
    tensor.rows().is_some() || of_layer() || is_lora && is_bias(adapter, tensor)
}

fn is_bias(adapter: &Adapter, tensor: &TrainedTensor) -> bool {
    let weight = biased(tensor.name()).map(|module| format!("{module}.weight"));
    weight.is_some_and(|weight| adapter.trained_tensor(&weight).is_none())
}

/// Returns the trained tensors of whole modules.
fn whole(adapter: &Adapter, is_lora: bool) -> impl Iterator<Item = &TrainedTensor> {
    let tensors = adapter.trained_tensors().iter();
    tensors.filter(move |tensor| !is_own_head(adapter, tensor) && !is_part(adapter, tensor, is_lora))
}

/// Returns the fields of a LoRA's configuration about biases and rows of embeddings.
pub fn fields(adapter: &Adapter) -> [(String, Value); 2] {
    let tensors = adapter.trained_tensors();
    let rows = tensors.iter().filter_map(|tensor| {
        let module = tensor.name().rsplit_once('.').map_or(tensor.name(), |(module, _)| module);
        Some((module.to_string(), json!(tensor.rows()?)))
    });
    let rows: Map<String, Value> = rows.collect();
    let bias = if tensors.iter().any(|tensor| is_bias(adapter, tensor)) { "all" } else { "none" };
    let rows = if rows.is_empty() { Value::Null } else { Value::Object(rows) };
    [("bias".into(), json!(bias)), ("trainable_token_indices".into(), rows)]
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

/// Returns the trained tensors to write, by PEFT's names; biases and rows for a LoRA alone.
pub fn trained(adapter: &Adapter, is_lora: bool) -> impl Iterator<Item = (String, TensorData<'_>)> {
    let parts =
        adapter.trained_tensors().iter().filter(move |tensor| is_lora && is_part(adapter, tensor, is_lora));
    let parts = parts.filter_map(|tensor| {
        let (module, parameter) = tensor.name().rsplit_once('.')?;
        let name = match tensor.rows() {
            Some(_) => format!("{PREFIX}{module}{}", tokens::END),
            None if adapter.layer(module).is_some() => {
                format!("{PREFIX}{module}.{BASE_LAYER}.{parameter}")
            }
            None => format!("{PREFIX}{module}.{parameter}"),
        };
        Some((name, tensor))
    });
    let whole = whole(adapter, is_lora).map(|tensor| (format!("{PREFIX}{}", tensor.name()), tensor));
    whole.chain(parts).map(|(name, tensor)| (name, TensorData::Trained(tensor)))
}

/// Returns the text for the weights' metadata: PEFT's configuration has no place for the names of classes.
pub fn labels(adapter: &Adapter, is_lora: bool) -> Option<(&'static str, &str)> {
    let labels = adapter.metadata().get(Adapter::LABELS_KEY)?;
    whole(adapter, is_lora).next().map(|_| (Adapter::LABELS_KEY, labels.as_str()))
}

/// Returns the modules whose tensors the adapter holds, for `modules_to_save`.
///
/// # Errors
/// Fails on a tensor in no module, which PEFT cannot save.
pub fn saved_modules(adapter: &Adapter, is_lora: bool) -> Result<BTreeSet<&str>> {
    let task = adapter.metadata().get("task_type");
    let classifying = task.is_some_and(|task| CLASSIFYING.contains(&task.as_str()));
    whole(adapter, is_lora).map(|tensor| saved_module(tensor.name(), classifying)).collect()
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
