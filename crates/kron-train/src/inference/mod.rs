//! Use of a trained model: a pretrained model with an adapter, a head, or both.

mod evaluate;
mod generate;
mod predict;

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::{Adapter, IfExists};

use crate::config::{Config, Task};
use crate::data::Tokenizer;
use crate::error::{Result, invalid};
use crate::model::Weights;
use crate::run::{LabelledHead, Learner, ReadAdapter, head_of_adapter, read_adapter, read_head};
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
    /// Without `head`, the head is the adapter's own, or that of `head.safetensors` beside the adapter.
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
        let read = adapter.map(|path| read_adapter(path, &config.model, weights)).transpose()?;
        let (weights, trained, notes) = match read {
            Some(ReadAdapter { adapter, weights, notes }) => (Cow::Owned(weights), Some(adapter), notes),
            None => (Cow::Borrowed(weights), None, Vec::new()),
        };
        let weights = &*weights;
        let (head, labels) = match (config.task, head) {
            (Task::Classify, Some(path)) => Some(read_head(path, weights)?),
            (Task::Classify, None) => Some(default_head(adapter.zip(trained.as_ref()), weights)?),
            _ => None,
        }
        .unzip();
        let learner = Learner::trained_before(weights, trained, head)?;
        let labels = labels.unwrap_or_default();
        let positions = weights.positions();
        Ok(Self { config: config.clone(), tokenizer, learner, labels, notes, positions })
    }

    /// Returns what reading the adapter changed and what of it is not used, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Returns the head that an adapter holds, or the one beside it.
fn default_head(adapter: Option<(&Path, &Adapter)>, weights: &Weights) -> Result<LabelledHead> {
    let Some((path, adapter)) = adapter else {
        return Err(invalid("the task classify needs a trained head, but none is given"));
    };
    if let Some(head) = head_of_adapter(path, adapter, weights)? {
        return Ok(head);
    }
    let beside = path.with_file_name("head.safetensors");
    if !beside.exists() {
        return Err(invalid(format!(
            "the task classify needs a trained head, but {} holds none, and {} does not exist",
            path.display(),
            beside.display()
        )));
    }
    read_head(&beside, weights)
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
