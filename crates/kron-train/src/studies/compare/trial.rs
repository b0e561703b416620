//! One run of a comparison: a row of `trials.csv`.

use serde::{Deserialize, Serialize};

use crate::run::resources::peak_mib;
use crate::run::{Answers, Outcome, Score};

/// One run: a row of `trials.csv`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Trial {
    /// Name of the entry, with the budget of its point if it is one of a curve.
    pub name: String,
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the head's.
    pub params: usize,
    /// Learning rate.
    #[serde(alias = "rate")]
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Score on the validation set: accuracy, or −loss.
    pub validation: f64,
    /// Score on the test set: accuracy, or −loss.
    pub test: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Mean processor seconds of a step, over all threads.
    pub step_cpu_seconds: Option<f64>,
    /// Highest resident memory in MiB.
    pub peak_mib: Option<f64>,
    /// Highest GPU memory in use, in MiB.
    pub device_mib: Option<u64>,
    /// Examples of the test set in their order: 1 for a correct answer, else 0; `None` without answers.
    pub right: Option<String>,
    /// The same of questions, if the choice with the highest log-probability is the answer instead of that with the
    /// highest mean over its tokens.
    pub right_by_sum: Option<String>,
}

impl Trial {
    /// Makes the row of a run; without an outcome it diverged, and has the score `worst`.
    pub(super) fn new(name: &str, lr: f64, seed: u64, outcome: Option<&Outcome>, worst: f64) -> Self {
        let value = |score: Option<Score>| score.map_or(worst, |s| s.value());
        let answers = |of: fn(&Answers) -> &[bool]| {
            let answers = outcome.and_then(|o| o.test_answers.as_ref()).map(of);
            let digit = |right: &bool| if *right { '1' } else { '0' };
            answers.filter(|all| !all.is_empty()).map(|all| all.iter().map(digit).collect())
        };
        Self {
            name: name.to_owned(),
            method: outcome.map_or("diverged".into(), |o| o.learner.description().to_owned()),
            params: outcome.map_or(0, |o| o.learner.body_params()),
            lr,
            seed,
            validation: value(outcome.and_then(|o| o.validation)),
            test: value(outcome.and_then(|o| o.test)),
            step_seconds: outcome.map_or(f64::NAN, Outcome::step_seconds),
            step_cpu_seconds: outcome.and_then(Outcome::step_cpu_seconds),
            peak_mib: peak_mib(),
            device_mib: outcome.and_then(Outcome::device_mib),
            right: answers(|a| &a.right),
            right_by_sum: answers(|a| &a.right_by_sum),
        }
    }
}
