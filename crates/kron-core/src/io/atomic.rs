//! A file under its name is whole, or it is not there.

use std::io::{BufWriter, Error as IoError, ErrorKind, Write};
use std::path::Path;

use crate::{Error, Result};

/// What to do with a file that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Existing {
    /// Put the new one in its place, in one step.
    Replace,
    /// Leave it and fail.
    Refuse,
}

/// Writes a file so that nobody ever sees half of it: into a temporary file
/// `.kron-*.tmp` of the same folder, flushed to the disk, then renamed, then
/// the folder flushed. New files get the permissions that the umask leaves.
///
/// A failure removes the temporary file and leaves `path` as it was; only a
/// process that is killed leaves a temporary file behind. A symbolic link at
/// `path` is replaced, not followed.
///
/// # Errors
/// What `write` returns, and what the system refuses; the message names `path`.
/// An error in flushing the folder, after the rename, leaves the new file.
pub fn write_atomic(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    try_write(path, existing, write).map_err(|source| Error::Io { path: path.display().to_string(), source })
}

fn try_write(
    path: &Path,
    existing: Existing,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    if path.file_name().is_none() {
        return Err(IoError::new(ErrorKind::InvalidInput, "names no file"));
    }
    // Asked again by the rename; here so that a long write is not in vain.
    if existing == Existing::Refuse && path.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kron-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temp = builder.tempfile_in(folder)?;

    let mut out = BufWriter::with_capacity(1 << 20, temp.as_file_mut());
    write(&mut out)?;
    out.into_inner().map_err(|e| e.into_error())?.sync_all()?;

    // Dropping what a failed rename gives back removes the temporary file.
    match existing {
        Existing::Replace => temp.persist(path),
        Existing::Refuse => temp.persist_noclobber(path),
    }
    .map_err(|e| e.error)?;
    sync_folder(folder)
}

/// Makes the rename itself survive a power cut.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::File::open(folder)?.sync_all() {
        // A file system that cannot flush a folder says so; the file is whole all the same.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// Elsewhere a folder cannot be opened, and the rename is the system's affair.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}
