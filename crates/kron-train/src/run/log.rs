//! CSV files that grow by one row at a time.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use kron_adapter::io::{self, write_atomic};
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use crate::error::{Result, file};
use crate::files;

/// Open CSV file that takes further rows.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    writer: csv::Writer<File>,
}

impl Log {
    /// Starts a file with the rows kept from an earlier one, which it replaces atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start<T: Serialize>(path: &Path, rows: &[T]) -> Result<Self> {
        write_atomic(path, IfExists::Replace, |out| {
            let mut writer = csv::Writer::from_writer(out);
            rows.iter().try_for_each(|row| writer.serialize(row))?;
            writer.flush()
        })?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| file(path, e))?;
        let writer = csv::WriterBuilder::new().has_headers(rows.is_empty()).from_writer(file);
        Ok(Self { path: path.into(), writer })
    }

    /// Appends a row and flushes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add<T: Serialize>(&mut self, row: &T) -> Result<()> {
        self.writer.serialize(row).map_err(|e| file(&self.path, e))?;
        self.writer.flush().map_err(|e| file(&self.path, e))
    }
}

/// Reads the rows of a file; a missing file has none.
///
/// A last line without a line end was cut off when the process was killed, and is left out.
///
/// # Errors
/// The file cannot be read, or a complete row does not parse: resuming would lose it.
pub fn read_log<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>> {
    if path.symlink_metadata().is_err() {
        return Ok(Vec::new());
    }
    let bytes = io::read(path, files::MAX_LOG)?;
    let complete = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let rows = csv::Reader::from_reader(&bytes[..complete]).into_deserialize().collect::<Result<_, _>>();
    rows.map_err(|e| file(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::records::{Evaluation, StepRecord};

    #[test]
    fn only_a_last_row_may_be_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("evaluations.csv");
        let evaluation = |step| Evaluation { step, split: "test".into(), loss: 0.5, accuracy: None };
        let mut log = Log::start(&path, &[evaluation(1)]).expect("a file");
        log.add(&evaluation(2)).expect("written");
        assert_eq!(read_log::<Evaluation>(&path).expect("rows"), [evaluation(1), evaluation(2)]);
        let whole = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, format!("{whole}3,te")).expect("written");
        assert_eq!(read_log::<Evaluation>(&path).expect("rows"), [evaluation(1), evaluation(2)]);
        std::fs::write(&path, format!("{whole}3,te\n4,test,0.5,\n")).expect("written");
        assert!(read_log::<Evaluation>(&path).is_err(), "a damaged row before the last");
        assert!(read_log::<StepRecord>(&path).is_err(), "rows of another kind");
    }

    #[test]
    fn logs_with_the_earlier_name_of_the_learning_rate_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.csv");
        let text =
            "step,epoch,rate,loss,gradient,tokens,seconds,cpu_seconds,device_mib\n1,0.5,0.002,1,2,3,4,,\n";
        std::fs::write(&path, text).expect("written");
        let rows = read_log::<StepRecord>(&path).expect("rows");
        assert_eq!((rows.len(), rows[0].lr), (1, 0.002));
        Log::start(&path, &rows).expect("a file");
        assert!(std::fs::read_to_string(&path).expect("text").starts_with("step,epoch,lr,loss,"));
        assert_eq!(read_log::<StepRecord>(&path).expect("rows"), rows);
    }
}
