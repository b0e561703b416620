//! Input embedding and output head that are one weight: a merge into one of them unties them.
//!
//! They are tied where their bytes are equal, whatever the configuration says, and where it says so and the model has
//! the embedding alone. Then the merged model has both, and `tie_word_embeddings` is false in its configuration.

use kron_adapter::extras::ChangeKind;
use kron_adapter::resolve::{BaseModel, TIED_PAIRS, resolve_module_names};
use kron_adapter::{Adapter, TrainedTensor};
use serde_json::{Value, json};

use super::fold::BAND;
use super::inputs::{Inputs, Unresolved};
use super::shard::read_tensor;
use crate::model::{Base, CONFIG};
use crate::{Error, Result};

/// Facts about a model whose embedding and head the adapters change.
#[derive(Default)]
pub struct Untied {
    /// The configuration of the merged model, where it differs from the model's.
    pub config: Option<Vec<u8>>,
    /// Sentence about the change.
    pub note: Option<String>,
}

/// Unties embedding and head if an adapter changes one of them; where that is impossible, the model stays tied, and
/// placing the layer fails.
///
/// # Errors
/// A tensor cannot be read, or the configuration contradicts itself.
pub fn untie(base: &mut Base, adapters: &[Unresolved]) -> Result<Untied> {
    let Some((embedding, head)) =
        TIED_PAIRS.into_iter().find(|(embedding, _)| base.tensor(embedding).is_some())
    else {
        return Ok(Untied::default());
    };
    // A head that the model lacks has no place yet, and the adapter keeps its own names.
    let with_names = |adapter: &Unresolved| {
        let own = &adapter.loaded.adapter;
        resolve_module_names(own, base).map_or_else(|_| own.clone(), |resolved| resolved.adapter)
    };
    let changes = |adapter: &Unresolved| {
        let named = with_names(adapter);
        changes(adapter, &named, embedding) || changes(adapter, &named, head)
    };
    if !adapters.iter().any(changes) {
        return Ok(Untied::default());
    }
    let says_tied = base.is_tied()?;
    let is_one = match base.tensor(head).is_some() {
        true => are_equal(base, embedding, head)?,
        false => says_tied,
    };
    match (is_one, base.tensor(head).is_some()) {
        (true, _) => base.tied = Some(true),
        // Their bytes differ, and the configuration says so too.
        (false, true) if !says_tied => return Ok(Untied::default()),
        (false, true) => {}
        (false, false) => {
            let is_said = base.config.as_ref().is_some_and(|config| config.knows_tied());
            let note = (!is_said).then(|| {
                format!("no {CONFIG} says whether a head is tied to {embedding}; if so, it changes too")
            });
            return Ok(Untied { config: None, note });
        }
    }
    let Some(config) = base.folder().map(|folder| folder.join(CONFIG)).filter(|config| config.exists())
    else {
        return Ok(Untied::default());
    };
    if base.tensor(head).is_none() {
        base.append_copy(embedding, head)?;
    }
    base.tied = Some(false);
    let were = match is_one {
        true => "were one weight, of which the adapter changes one: the merged model has both, and",
        false => "differ, though the configuration says that they are one weight: in the merged model",
    };
    let note = Some(format!("{embedding} and {head} {were} tie_word_embeddings is false in its {CONFIG}"));
    Ok(Untied { config: Some(untied_config(&config)?), note })
}

/// Gives the trained tokens of an embedding to the head that a tied model stores beside it, and the other way round, as
/// PEFT does.
///
/// # Errors
/// A tensor cannot be read, or the configuration contradicts itself.
pub fn repeat_tokens(base: &Base, inputs: &mut Inputs) -> Result<()> {
    let Some((embedding, head)) =
        TIED_PAIRS.into_iter().find(|(embedding, _)| base.tensor(embedding).is_some())
    else {
        return Ok(());
    };
    let other = |name: &str| match name {
        name if name == embedding => Some(head),
        name if name == head => Some(embedding),
        _ => None,
    };
    let is_tied = base.tied != Some(false) && base.is_tied()?;
    let twin = |tensor: &TrainedTensor| {
        tensor.renamed(other(tensor.name()).filter(|_| tensor.rows().is_some())?).ok()
    };
    let twins = |adapter: &Adapter| -> Vec<_> { adapter.trained_tensors().iter().filter_map(twin).collect() };
    let has_twins = inputs.all.iter().any(|input| !twins(&input.adapter).is_empty());
    if !has_twins || !is_tied || !are_equal(base, embedding, head)? {
        return Ok(());
    }
    for input in &mut inputs.all {
        let trained = [input.adapter.trained_tensors(), &twins(&input.adapter)].concat();
        input.adapter = input.adapter.clone().with_trained_tensors(trained)?;
    }
    Ok(())
}

/// True if an adapter changes the weight, under this name or another with fewer or more leading components.
fn changes(adapter: &Unresolved, named: &Adapter, weight: &str) -> bool {
    let weight = weight.trim_end_matches(".weight");
    let is = |module: &str| {
        let ends = |long: &str, short: &str| {
            long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        // LyCORIS writes an underscore for a dot.
        ends(weight, module) || ends(module, weight) || module.ends_with(&weight.replace('.', "_"))
    };
    // Rows are those of both weights.
    let trained = named.trained_tensors().iter().filter(|tensor| tensor.rows().is_none());
    let mut trained = trained.filter_map(|tensor| tensor.name().strip_suffix(".weight"));
    let changes = adapter.extras.changes.iter().filter(|change| change.kind() != ChangeKind::Copy);
    named.layers().iter().any(|layer| is(layer.module()))
        || trained.any(is)
        || changes.filter(|change| change.parameter() == "weight").any(|change| is(change.module()))
}

/// Returns true if two tensors have one shape, one dtype and the same bytes.
fn are_equal(base: &Base, one: &str, other: &str) -> Result<bool> {
    let (Some(a), Some(b)) = (base.find(one), base.find(other)) else { return Ok(false) };
    if base.tensor(one) != base.tensor(other) {
        return Ok(false);
    }
    let len = base.shards[a.0].tensors[a.1].len as usize;
    let mut equal = true;
    for at in (0..len).step_by(BAND) {
        let band = BAND.min(len - at);
        let mut first = Vec::with_capacity(band);
        read_tensor(&base.shards[a.0], a.1, at as u64, vec![(0, band)], |_, bytes| {
            first.extend_from_slice(bytes);
            Ok(())
        })?;
        read_tensor(&base.shards[b.0], b.1, at as u64, vec![(0, band)], |_, bytes| {
            equal = first == bytes;
            Ok(())
        })?;
        if !equal {
            break;
        }
    }
    Ok(equal)
}

/// Returns the text of a configuration with `tie_word_embeddings: false`, also in the part about the language model.
fn untied_config(path: &std::path::Path) -> Result<Vec<u8>> {
    let refused = |why: String| Error::data(format!("{}: {why}", path.display()));
    let text = kron_adapter::io::read(path, kron_adapter::model_files::MAX_CONFIG_BYTES)?;
    let mut value: Value = serde_json::from_slice(&text).map_err(|e| refused(e.to_string()))?;
    let Value::Object(fields) = &mut value else { return Err(refused("it is not a JSON object".into())) };
    const FIELD: &str = "tie_word_embeddings";
    fields.insert(FIELD.into(), json!(false));
    if let Some(Value::Object(text)) = fields.get_mut("text_config")
        && text.contains_key(FIELD)
    {
        text.insert(FIELD.into(), json!(false));
    }
    let mut text = serde_json::to_vec_pretty(&value).map_err(|e| refused(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
