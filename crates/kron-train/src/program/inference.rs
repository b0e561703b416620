//! `kron-train eval` and `predict`.

use super::cli::Inference;
use super::load::load;
use super::print::{note, put};
use crate::error::Result;
use crate::inference::TrainedModel;

/// Scores a trained model on examples with answers.
pub fn evaluate(inference: &Inference) -> Result<()> {
    let model = trained_model(inference)?;
    let result = || {
        let result = model.evaluate(&inference.data)?;
        let data = inference.data.display();
        note(&format!("{data}: {}, {} examples", result.score, result.examples));
        result.json()
    };
    put(inference.out.as_deref(), std::iter::once_with(result))
}

/// Answers examples.
pub fn predict(inference: &Inference) -> Result<()> {
    let model = trained_model(inference)?;
    put(inference.out.as_deref(), model.predict(&inference.data)?)
}

fn trained_model(inference: &Inference) -> Result<TrainedModel> {
    let config = inference.config()?;
    let (weights, tokenizer) = load(&config)?;
    let (adapter, head) = (inference.adapter.as_deref(), inference.head.as_deref());
    let model = TrainedModel::new(&config, &weights, tokenizer, adapter, head)?;
    model.notes().iter().for_each(|text| note(text));
    Ok(model)
}
