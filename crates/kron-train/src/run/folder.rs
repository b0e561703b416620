//! Output folder of a run: empty at its beginning, or with the checkpoint to resume.

use std::path::PathBuf;

use crate::error::{Result, file, invalid};
use crate::files;

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
    /// Creates the folder if it does not exist, and fails if a run there would replace anything.
    ///
    /// # Errors
    /// A new run's folder is not empty, or a run to resume has no checkpoint.
    pub(super) fn open(&self) -> Result<()> {
        let folder = &self.path;
        let has_checkpoint = folder.join(CHECKPOINT).symlink_metadata().is_ok();
        if self.resume {
            return match has_checkpoint {
                true => Ok(()),
                false => Err(file(folder, format!("has no {CHECKPOINT}, but --resume continues from one"))),
            };
        }
        std::fs::create_dir_all(folder).map_err(|e| file(folder, e))?;
        if has_checkpoint {
            return Err(invalid(format!(
                "{} holds a run: pass --resume to continue it, or another folder",
                folder.display()
            )));
        }
        match files::contents(folder)?.as_slice() {
            [] => Ok(()),
            names => Err(files::taken(folder, names, "a new run takes an empty folder")),
        }
    }
}
