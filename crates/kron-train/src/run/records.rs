//! Rows of a run's two logs.

use serde::{Deserialize, Serialize};

/// Quality of the predictions on a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Mean loss, natural logarithm.
    pub loss: f64,
    /// Fraction of correct answers; `None` for a language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

impl Score {
    /// Returns the value that studies maximise: the accuracy, or −loss without one.
    pub fn value(&self) -> f64 {
        self.accuracy.unwrap_or(-self.loss)
    }
}

impl std::fmt::Display for Score {
    /// `loss 0.4210, accuracy 87.3 %`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "loss {:.4}", self.loss)?;
        self.accuracy.map_or(Ok(()), |accuracy| write!(f, ", accuracy {:.1} %", 100.0 * accuracy))
    }
}

/// Examples of a set that are answered correctly, in the set's order; empty for a language model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Correct answers; of a question, the choice with the highest mean log-probability of its tokens is the answer.
    pub right: Vec<bool>,
    /// Correct answers if a question's answer is the choice with the highest log-probability; empty for other tasks.
    pub right_by_sum: Vec<bool>,
}

/// One training step: a row of `log.csv`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Passes over the training set, including this step.
    pub epoch: f64,
    /// Learning rate.
    #[serde(alias = "rate")]
    pub lr: f64,
    /// Mean loss of the batch.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub gradient: f64,
    /// Tokens of the batch, those of a shared prefix once.
    pub tokens: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Processor seconds over all threads, in steps of 10 ms.
    pub cpu_seconds: Option<f64>,
    /// Highest GPU memory in use after one of this step's backward passes, in MiB.
    pub device_mib: Option<u64>,
}

/// One evaluation of the model on a set: a row of `evaluations.csv`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of steps taken before it.
    pub step: u64,
    /// `validation` or `test`.
    pub split: String,
    /// Mean loss.
    pub loss: f64,
    /// Fraction of correct answers.
    pub accuracy: Option<f64>,
}

impl Evaluation {
    /// Records a score after `step` steps.
    pub fn new(step: u64, split: &str, score: Score) -> Self {
        Self { step, split: split.into(), loss: score.loss, accuracy: score.accuracy }
    }
}
