//! Prediction of a trained model for texts and questions without answers.

use std::collections::BTreeMap;
use std::path::Path;

use kron_adapter::text::printable_json;
use serde::Serialize;

use super::TrainedModel;
use crate::data::Inputs;
use crate::error::{Result, file};

/// Batches whose predictions are in memory at once; longer texts and shorter ones are sorted among them.
const BATCHES: usize = 64;

/// Prediction for one line of the input: the field of its answer, and all scores.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Prediction<'a> {
    Class { label: &'a str, scores: BTreeMap<&'a str, f32> },
    Choice { answer: usize, scores: &'a [f32] },
}

impl TrainedModel {
    /// Reads a file of inputs, and returns the predictions as JSONL: a line for each line of the file, in its order.
    /// The iterator computes some batches at a time.
    ///
    /// A class has its probability as its score, a choice its mean log-probability.
    ///
    /// # Errors
    /// The file is malformed, or the task has no answers; later, a score is NaN or infinite.
    pub fn predict(&self, path: &Path) -> Result<impl Iterator<Item = Result<String>>> {
        let Self { config, tokenizer, learner, labels, .. } = self;
        let inputs = Inputs::read(path, config.task, config.data.max_len, tokenizer)?;
        let (len, batch) = (inputs.len(), config.train.batch);
        let starts = (0..len).step_by(BATCHES * batch);
        Ok(starts.map(move |start| {
            let which = start..len.min(start + BATCHES * batch);
            let all = learner.predict(&inputs, which.clone(), batch)?;
            let line = |(i, scores): (usize, Vec<f32>)| {
                let Some(best) = best(&scores) else {
                    return Err(file(path, format!("line {} has a score that is NaN or infinite", i + 1)));
                };
                let prediction = match &inputs {
                    Inputs::Texts(_) => {
                        let names = labels.iter().map(String::as_str);
                        Prediction::Class {
                            label: &labels[best],
                            scores: names.zip(softmax(&scores)).collect(),
                        }
                    }
                    Inputs::Questions(_) => Prediction::Choice { answer: best, scores: &scores },
                };
                let json = serde_json::to_string(&prediction).map_err(|e| file(path, e))?;
                Ok(format!("{}\n", printable_json(&json)))
            };
            which.zip(all).map(line).collect()
        }))
    }
}

/// Returns the index of the largest score, the first of equal ones; `None` if a score is not finite.
fn best(scores: &[f32]) -> Option<usize> {
    let finite = scores.iter().all(|score| score.is_finite());
    (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).filter(|_| finite)
}

/// Returns exp(xᵢ) / Σⱼ exp(xⱼ).
fn softmax(x: &[f32]) -> impl Iterator<Item = f32> {
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    let powers: Vec<f64> = x.iter().map(|x| f64::from(x - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(move |power| (power / sum) as f32)
}
