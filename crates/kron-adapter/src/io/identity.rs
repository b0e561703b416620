//! Comparison of files by what they are: links and mounts give one file several paths.

use std::fs::File;
use std::path::Path;

use crate::{Error, Result};

/// Fails if writing `out` would change `source`: if they are one file or folder, or `source` lies
/// in the folder `out`, whatever links and mounts lead there.
///
/// # Errors
/// A usage error with both names.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let (model, out) = (folder.path().join("model"), folder.path().join("out"));
/// # std::fs::create_dir(&model)?;
/// use kron_adapter::io::check_not_overwriting;
///
/// assert!(check_not_overwriting(&model, &out).is_ok());
/// assert!(check_not_overwriting(&model, folder.path()).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_not_overwriting(source: &Path, out: &Path) -> Result<()> {
    // Without either there is nothing to overwrite.
    let (Ok(read), Some(written)) = (source.canonicalize(), identity(out)) else { return Ok(()) };
    match read.ancestors().any(|folder| identity(folder).as_ref() == Some(&written)) {
        true => Err(overwriting(source, out)),
        false => Ok(()),
    }
}

/// Fails if the file `out` would lie directly in the folder `source`.
///
/// # Errors
/// A usage error with both names.
pub fn check_not_inside(source: &Path, out: &Path) -> Result<()> {
    let folder = identity(super::names::folder_of(out));
    match source.is_dir() && folder.is_some() && folder == identity(source) {
        true => Err(overwriting(source, out)),
        false => Ok(()),
    }
}

fn overwriting(source: &Path, out: &Path) -> Error {
    Error::usage(format!(
        "{} is not written: that would change {}, which is read; give another place",
        out.display(),
        source.display()
    ))
}

/// Returns true if the path leads to this open file.
#[cfg(unix)]
pub(super) fn is_same(file: &File, path: &Path) -> bool {
    let place = |meta: std::fs::Metadata| of(&meta);
    let open = file.metadata().map(place);
    open.is_ok_and(|open| path.symlink_metadata().map(place).is_ok_and(|there| there == open))
}

/// Returns true if there is a file: other systems do not say which.
#[cfg(not(unix))]
pub(super) fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Device and number of what a path leads to.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|meta| of(&meta))
}

#[cfg(unix)]
fn of(meta: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino())
}

/// Path without links.
#[cfg(not(unix))]
fn identity(path: &Path) -> Option<std::path::PathBuf> {
    path.canonicalize().ok()
}
