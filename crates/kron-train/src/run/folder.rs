//! Output folder of a run: empty at its beginning, but for what a run of the same settings left before its first
//! checkpoint, or with the checkpoint to resume.

use std::path::{Path, PathBuf};

use kron_adapter::io::OutputLock;

use super::checkpoint::check_settings;
use super::log::read_log;
use super::records::{Evaluation, StepRecord};
use crate::config::Config;
use crate::error::{Result, file, invalid};
use crate::files;
use crate::output;

/// Name of a run's checkpoint.
pub(super) const CHECKPOINT: &str = "checkpoint.safetensors";
/// Names of the settings and of the two logs, which a run writes before its first checkpoint.
pub(super) const SETTINGS: &str = "config.toml";
pub(super) const STEPS: &str = "log.csv";
pub(super) const EVALUATIONS: &str = "evaluations.csv";

/// Folder of a run's files.
#[derive(Clone, Debug)]
pub struct OutputFolder {
    /// Path of the folder.
    pub path: PathBuf,
    /// Resumes from the folder's checkpoint.
    pub resume: bool,
}

impl OutputFolder {
    /// Returns `true` if the folder has a checkpoint to resume from.
    pub(crate) fn has_checkpoint(folder: &Path) -> bool {
        folder.join(CHECKPOINT).symlink_metadata().is_ok()
    }

    /// Creates the folder if it does not exist, and locks it; fails if a run there would replace anything.
    ///
    /// # Errors
    /// A new run's folder holds anything but what the same run left before its first checkpoint, the folder holds no run of these settings to resume, another process writes
    /// there, or an input lies in the folder.
    pub(super) fn open(&self, config: &Config) -> Result<OutputLock> {
        let folder = &self.path;
        let unsaved = || file(folder, format!("has no {CHECKPOINT}, but --resume continues from one"));
        if self.resume && !folder.is_dir() {
            return Err(unsaved());
        }
        let lock = output::claim(folder, config)?;
        let names = output::contents(folder)?;
        let has_checkpoint = names.iter().any(|name| name == CHECKPOINT);
        match (self.resume, has_checkpoint, begun(folder, &names, config)) {
            (true, true, _) | (false, false, Some(Ok(()))) => Ok(lock),
            (true, false, Some(Ok(()))) => Err(file(
                folder,
                format!(
                    "has no {CHECKPOINT}, because its run ended before the first: without --resume it begins"
                ),
            )),
            (true, false, _) => Err(unsaved()),
            (false, true, _) => Err(invalid(format!(
                "{} holds a run: pass --resume to continue it, or another folder",
                folder.display()
            ))),
            (false, false, _) if names.is_empty() => Ok(lock),
            (false, false, _) => Err(output::taken(folder, &names, "a new run takes an empty folder")),
        }
    }
}

/// Checks the settings of a run that ended before its first checkpoint; `None` if the folder holds none, or anything
/// besides what such a run leaves.
fn begun(folder: &Path, names: &[String], config: &Config) -> Option<Result<()>> {
    let own = |name: &String| [SETTINGS, STEPS, EVALUATIONS].contains(&name.as_str());
    let path = folder.join(SETTINGS);
    (names.iter().any(|name| name == SETTINGS) && names.iter().all(own)).then(|| {
        let theirs = files::text(&path, files::MAX_SETTINGS)?;
        check_settings(&path, &theirs, config)?;
        // A file of that name that is not the run's own is somebody's.
        read_log::<StepRecord>(&folder.join(STEPS))?;
        read_log::<Evaluation>(&folder.join(EVALUATIONS)).map(drop)
    })
}
