//! Output folder of a run: empty at its beginning, or with the checkpoint to resume.

use std::path::PathBuf;

use kron_adapter::io::OutputLock;

use crate::config::Config;
use crate::error::{Result, file, invalid};
use crate::output;

/// Name of a run's checkpoint.
pub(super) const CHECKPOINT: &str = "checkpoint.safetensors";

/// Folder of a run's files.
#[derive(Clone, Debug)]
pub struct OutputFolder {
    /// Path of the folder.
    pub path: PathBuf,
    /// Resumes from the folder's checkpoint.
    pub resume: bool,
}

impl OutputFolder {
    /// Creates the folder if it does not exist, and locks it; fails if a run there would replace anything.
    ///
    /// # Errors
    /// A new run's folder is not empty, a run to resume has no checkpoint, another process writes there, or an input
    /// lies in the folder.
    pub(super) fn open(&self, config: &Config) -> Result<OutputLock> {
        let folder = &self.path;
        let unsaved = || file(folder, format!("has no {CHECKPOINT}, but --resume continues from one"));
        if self.resume && !folder.is_dir() {
            return Err(unsaved());
        }
        let lock = output::claim(folder, config)?;
        let has_checkpoint = folder.join(CHECKPOINT).symlink_metadata().is_ok();
        match (self.resume, has_checkpoint) {
            (true, true) => return Ok(lock),
            (true, false) => return Err(unsaved()),
            (false, true) => {
                return Err(invalid(format!(
                    "{} holds a run: pass --resume to continue it, or another folder",
                    folder.display()
                )));
            }
            (false, false) => {}
        }
        match output::contents(folder)?.as_slice() {
            [] => Ok(lock),
            names => Err(output::taken(folder, names, "a new run takes an empty folder")),
        }
    }
}
