//! [`SharedStudy`]: the rows of a study in its folder, and the runs in progress, for several processes.
//!
//! A process picks a run that has no row and that no process has claimed, and claims it by a lock beside the run's
//! folder. The system takes the lock from a process that ends in any way, and another process continues the run. Rows are
//! read and written under the lock of the study's folder, which a process holds for as long as that takes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kron_adapter::io::OutputLock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::jobs::Next;
use crate::error::Result;
use crate::run::{Log, read_log};

/// Longest time for which others may hold the study's folder.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two questions for it.
const PAUSE: Duration = Duration::from_millis(5);

/// Folder of a study, and the name of its file of rows.
#[derive(Clone, Copy)]
pub(super) struct SharedStudy<'a> {
    pub folder: &'a Path,
    pub rows: &'static str,
}

/// Rows of type `R` of all processes, and the runs `T` that this one has claimed.
pub(super) struct StudyState<T, R> {
    pub rows: Vec<R>,
    claims: Vec<(T, OutputLock)>,
}

/// Locks a folder that others hold for a short time.
///
/// # Errors
/// Another process holds it for longer, or the system refuses.
pub(super) fn lock(folder: &Path) -> Result<OutputLock> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Some(lock) = OutputLock::folder_if_free(folder)? {
            return Ok(lock);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(OutputLock::folder(folder)?)
}

impl SharedStudy<'_> {
    /// Reads the rows, and writes them again without one that was cut off.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open<T, R: Serialize + DeserializeOwned>(&self) -> Result<StudyState<T, R>> {
        let _lock = lock(self.folder)?;
        let rows = self.read()?;
        Log::start(&self.folder.join(self.rows), &rows)?;
        Ok(StudyState { rows, claims: Vec::new() })
    }

    /// Reads the rows, while this process holds the folder's lock.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read<R: DeserializeOwned>(&self) -> Result<Vec<R>> {
        read_log(&self.folder.join(self.rows))
    }

    /// Claims the next run: `first` returns one that has no row and is not in progress, and
    /// `run_folder` its folder.
    ///
    /// # Errors
    /// The rows cannot be read, or a run cannot be claimed.
    pub fn next<T: Clone + PartialEq, R: DeserializeOwned>(
        &self,
        state: &mut StudyState<T, R>,
        running: &[T],
        run_folder: impl Fn(&T) -> Result<PathBuf>,
        first: impl Fn(&[R], &[T]) -> Option<T>,
    ) -> Result<Next<T>> {
        let _lock = lock(self.folder)?;
        state.rows = self.read()?;
        let mut taken = running.to_vec();
        while let Some(run) = first(&state.rows, &taken) {
            if let Some(claim) = OutputLock::beside_if_free(&run_folder(&run)?)? {
                state.claims.push((run.clone(), claim));
                return Ok(Next::Run(run));
            }
            taken.push(run);
        }
        Ok(if taken.len() > running.len() { Next::WaitForOthers } else { Next::Nothing })
    }

    /// Adds the row of a run that this process has claimed, and gives it up.
    ///
    /// # Errors
    /// The file cannot be read or written, and has the rows that it had.
    pub fn add<T: PartialEq, R: Serialize + DeserializeOwned>(
        &self,
        state: &mut StudyState<T, R>,
        run: &T,
        row: R,
    ) -> Result<()> {
        let _lock = lock(self.folder)?;
        state.rows = self.read()?;
        state.rows.push(row);
        Log::start(&self.folder.join(self.rows), &state.rows)?;
        state.claims.retain(|(claimed, _)| claimed != run);
        Ok(())
    }
}
