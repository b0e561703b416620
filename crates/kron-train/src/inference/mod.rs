//! Use of a trained model: a pretrained model with an adapter, a head, or both.

mod evaluate;
mod generate;
mod predict;

use std::io::ErrorKind;
use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;

use crate::config::{Config, Task};
use crate::data::Tokenizer;
use crate::error::{Result, invalid};
use crate::model::Weights;
use crate::run::{Learner, read_adapter, read_head};
pub use evaluate::Evaluated;
pub use generate::{Ended, GenerateOptions, Generated, Generation, Generator};

/// Pretrained model with what was trained for it.
pub struct TrainedModel {
    config: Config,
    tokenizer: Tokenizer,
    learner: Learner,
    /// Names of the head's classes, sorted; empty for other tasks.
    labels: Vec<String>,
    notes: Vec<String>,
    /// Longest text in tokens.
    positions: usize,
}

impl TrainedModel {
    /// Puts an adapter of any readable format, and for the task `classify` a head, on a pretrained model.
    ///
    /// Of the settings, those of the model, the task, the data and the batch have an effect.
    ///
    /// # Errors
    /// A setting is out of range, a file is damaged, or the adapter or the head belongs to another model.
    pub fn new(
        config: &Config,
        weights: &Weights,
        tokenizer: Tokenizer,
        adapter: Option<&Path>,
        head: Option<&Path>,
    ) -> Result<Self> {
        config.check()?;
        let read = |path| read_adapter(path, &config.model, weights);
        let (adapter, notes) = adapter.map(read).transpose()?.unzip();
        let (head, labels) = match (config.task, head) {
            (Task::Classify, Some(path)) => Some(read_head(path, weights)?).unzip(),
            (Task::Classify, None) => {
                return Err(invalid("the task classify needs a trained head, but none is given"));
            }
            _ => (None, None),
        };
        let learner = Learner::trained_before(weights, adapter, head)?;
        let (labels, notes) = (labels.unwrap_or_default(), notes.unwrap_or_default());
        let positions = weights.positions();
        Ok(Self { config: config.clone(), tokenizer, learner, labels, notes, positions })
    }

    /// Returns what reading the adapter changed, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Writes a new file of these parts, whole or not at all.
///
/// # Errors
/// A part fails, the file exists, or it cannot be written.
pub fn write_new(path: &Path, parts: impl IntoIterator<Item = Result<String>>) -> Result<()> {
    let mut failed = None;
    let written = write_atomic(path, IfExists::Refuse, |out| {
        for part in parts {
            let text = part.map_err(|error| {
                failed = Some(error);
                ErrorKind::Other
            })?;
            out.write_all(text.as_bytes())?;
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}
