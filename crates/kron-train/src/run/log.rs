//! `log.csv`: one row a step; and `evaluations.csv`: one row a look at a set.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use crate::error::{Result, file};
use crate::learner::Score;

/// What one step was like.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// From 1.
    pub step: u64,
    /// Passes over the training set, this step included.
    pub epoch: f64,
    /// Learning rate.
    pub rate: f64,
    /// Mean loss of the batch.
    pub loss: f32,
    /// Length of the gradient before it was shortened.
    pub gradient: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Seconds of this step.
    pub seconds: f64,
    /// Processor seconds of this step, over all threads, in hundredths.
    pub cpu_seconds: Option<f64>,
    /// Most MiB in use on the GPU after one of this step's backward passes.
    pub device_mib: Option<u64>,
}

/// One look at a set.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Look {
    /// Steps taken.
    pub step: u64,
    /// `validation` or `test`.
    pub split: String,
    /// Mean loss.
    pub loss: f64,
    /// Share of right answers.
    pub accuracy: Option<f64>,
}

impl Look {
    /// A score with its place in the run.
    pub fn new(step: u64, split: &str, score: Score) -> Self {
        Self { step, split: split.into(), loss: score.loss, accuracy: score.accuracy }
    }
}

/// A CSV file that grows by a row at a time.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    writer: csv::Writer<File>,
}

impl Log {
    /// Starts a file with the rows that are kept of an earlier one, which is there until the new one is whole.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn start<T: Serialize>(path: &Path, kept: &[T]) -> Result<Self> {
        write_atomic(path, IfExists::Replace, |out| {
            let mut writer = csv::Writer::from_writer(out);
            kept.iter().try_for_each(|row| writer.serialize(row))?;
            writer.flush()
        })?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| file(path, e))?;
        let writer = csv::WriterBuilder::new().has_headers(kept.is_empty()).from_writer(file);
        Ok(Self { path: path.into(), writer })
    }

    /// Adds a row and hands it to the system.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn add<T: Serialize>(&mut self, row: &T) -> Result<()> {
        self.writer.serialize(row).map_err(|e| file(&self.path, e))?;
        self.writer.flush().map_err(|e| file(&self.path, e))
    }
}

/// The rows of a file; none where it is not there. A last line without its end was cut off by a kill, and is left out.
///
/// # Errors
/// What the system refuses, and a row that is none of this kind: going on would lose it.
pub fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let rows = csv::Reader::from_reader(whole.as_bytes()).into_deserialize().collect::<Result<_, _>>();
    rows.map_err(|e| file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_last_row_may_be_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("evaluations.csv");
        let look = |step| Look { step, split: "test".into(), loss: 0.5, accuracy: None };
        let mut log = Log::start(&path, &[look(1)]).expect("a file");
        log.add(&look(2)).expect("room");
        assert_eq!(read::<Look>(&path).expect("rows"), [look(1), look(2)]);
        let whole = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, format!("{whole}3,te")).expect("room");
        assert_eq!(read::<Look>(&path).expect("rows"), [look(1), look(2)]);
        std::fs::write(&path, format!("{whole}3,te\n4,test,0.5,\n")).expect("room");
        assert!(read::<Look>(&path).is_err(), "a damaged row before the last");
        assert!(read::<Row>(&path).is_err(), "rows of another kind");
    }
}
