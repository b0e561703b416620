//! Evaluation of a trained model on a file of examples.

use std::path::Path;

use serde::Serialize;

use super::TrainedModel;
use crate::config::Task;
use crate::data::Examples;
use crate::error::{Result, file, invalid};
use crate::run::Score;

/// Result of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluated {
    /// Task of the examples.
    pub task: Task,
    /// Number of examples.
    pub examples: usize,
    /// Score on them.
    #[serde(flatten)]
    pub score: Score,
}

impl Evaluated {
    /// Renders the result as a line of JSON.
    ///
    /// # Errors
    /// JSON cannot express a value.
    pub fn json(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|e| invalid(format!("a result is not JSON: {e}")))?;
        Ok(json + "\n")
    }
}

impl TrainedModel {
    /// Evaluates the model on a file of the task's examples.
    ///
    /// # Errors
    /// The file is malformed or has a label that the head does not know, or the loss is NaN or infinite.
    pub fn evaluate(&self, path: &Path) -> Result<Evaluated> {
        let Self { config, tokenizer, learner, labels, .. } = self;
        let (task, limit) = (config.task, config.data.limit_eval);
        let examples = Examples::read(path, task, labels, &config.data, limit, tokenizer)?;
        let score = learner.score(&examples, config.train.batch)?;
        match score.loss.is_finite() {
            true => Ok(Evaluated { task, examples: examples.len(), score }),
            false => Err(file(
                path,
                format!("has a loss of {} under this model, but a loss is finite", score.loss),
            )),
        }
    }
}
