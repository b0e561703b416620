//! Names of temporary files and of locks.

use std::ffi::OsStr;
use std::path::Path;

/// First characters of every such name, and the last ones of temporary files and of locks.
pub(super) const PREFIX: &str = ".kron-";
pub(super) const SUFFIX: &str = ".tmp";
pub(super) const LOCK: &str = ".lock";
/// Name of the lock in a folder.
pub(crate) const FOLDER_LOCK: &str = ".kron.lock";

/// Returns the folder of a path, `.` for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns true for the name of a temporary file or folder, or of a lock: nobody's content.
pub fn is_temporary(name: &OsStr) -> bool {
    let text = name.to_string_lossy();
    is_lock(name) || text.starts_with(PREFIX) && text.ends_with(SUFFIX)
}

/// Returns true for the name of a lock.
pub(super) fn is_lock(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == FOLDER_LOCK || name.starts_with(PREFIX) && name.ends_with(LOCK)
}
