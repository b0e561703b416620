//! [`Board`]: the rows of a study and its runs in progress, which several processes share by the study's folder.
//!
//! A process picks a run that has no row and that nobody has claimed, and claims it by a lock beside the run's folder;
//! the system takes the lock from a process that ends in any way, and the next one continues the run. Rows are read and
//! written under the lock of the study's folder, which nobody holds for long.

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

/// Folder of a study, and the name of its file of rows.
#[derive(Clone, Copy)]
pub(super) struct Board<'a> {
    pub folder: &'a Path,
    pub rows: &'static str,
}

/// State of a study as this process knows it, with runs `T` and rows `R`.
pub(super) struct Seen<T, R> {
    /// Rows of all processes.
    pub rows: Vec<R>,
    /// Runs that this process has claimed.
    claims: Vec<(T, OutputLock)>,
}

/// Locks a folder that others hold for a short time.
///
/// # Errors
/// Another process holds it for longer, or the system refuses.
pub(super) fn lock(folder: &Path) -> Result<OutputLock> {
    let begin = Instant::now();
    loop {
        match OutputLock::folder(folder) {
            Err(_) if begin.elapsed() < PATIENCE => {}
            done => return Ok(done?),
        }
    }
}

impl Board<'_> {
    /// Reads the rows, and writes them again without one that was cut off.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open<T, R: Serialize + DeserializeOwned>(&self) -> Result<Seen<T, R>> {
        let _lock = lock(self.folder)?;
        let rows = self.read()?;
        Log::start(&self.folder.join(self.rows), &rows)?;
        Ok(Seen { rows, claims: Vec::new() })
    }

    fn read<R: DeserializeOwned>(&self) -> Result<Vec<R>> {
        read_log(&self.folder.join(self.rows))
    }

    /// Claims the next run: `first` returns one that has no row and is not among those in progress, and `place` its
    /// folder.
    ///
    /// # Errors
    /// The rows cannot be read, or a run cannot be claimed.
    pub fn next<T: Clone + PartialEq, R: DeserializeOwned>(
        &self,
        seen: &mut Seen<T, R>,
        running: &[T],
        place: impl Fn(&T) -> Result<PathBuf>,
        first: impl Fn(&[R], &[T]) -> Option<T>,
    ) -> Result<Next<T>> {
        let _lock = lock(self.folder)?;
        seen.rows = self.read()?;
        let mut taken = running.to_vec();
        while let Some(run) = first(&seen.rows, &taken) {
            if let Some(claim) = OutputLock::beside_if_free(&place(&run)?)? {
                seen.claims.push((run.clone(), claim));
                return Ok(Next::Run(run));
            }
            taken.push(run);
        }
        Ok(if taken.len() > running.len() { Next::Elsewhere } else { Next::Nothing })
    }

    /// Adds the row of a run that this process has claimed, and gives it up.
    ///
    /// # Errors
    /// The rows cannot be read or written; they stay as they were.
    pub fn add<T: PartialEq, R: Serialize + DeserializeOwned>(
        &self,
        seen: &mut Seen<T, R>,
        run: &T,
        row: R,
    ) -> Result<()> {
        let _lock = lock(self.folder)?;
        seen.rows = self.read()?;
        seen.rows.push(row);
        Log::start(&self.folder.join(self.rows), &seen.rows)?;
        seen.claims.retain(|(claimed, _)| claimed != run);
        Ok(())
    }
}
