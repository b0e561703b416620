//! Files that appear under their name whole or not at all.

use std::fs::{self, File};
use std::io::{Error as IoError, ErrorKind, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

use super::identity::is_same;
use super::lock::OutputLock;
use super::names::{PREFIX, SUFFIX, folder_of, is_lock, is_temporary};
use super::options::{Flush, IfExists};
use super::stream::Stream;
use crate::{Error, Result};

/// Writes a file so that no reader ever sees half of it.
///
/// The bytes go into a temporary file `.kron-*.tmp` in the same folder, which is
/// flushed to the disk and renamed; then the folder is flushed. New files get the
/// permissions that the umask leaves.
///
/// A failure removes the temporary file and leaves `path` as it was. Only a
/// killed process leaves a temporary file behind, which the next write into the
/// folder removes. The name is locked while it is written ([`OutputLock`]). A symbolic link at `path` is replaced, not followed.
///
/// On Linux the bytes of a large file bypass the system's cache where the file
/// system allows it, which saves one copy.
///
/// # Errors
/// Fails if another process writes `path`, if `write` fails and if the system refuses; the message
/// names `path`.
/// An error in flushing the folder, after the rename, leaves the new file.
pub fn write_atomic(
    path: &Path,
    if_exists: IfExists,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    write_whole(path, if_exists, Flush::Now, write)
}

/// Writes as [`write_atomic`] does; `flush` decides whether file and folder are flushed.
///
/// # Errors
/// Fails as [`write_atomic`] does.
pub fn write_whole(
    path: &Path,
    if_exists: IfExists,
    flush: Flush,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let io = |source| Error::io(path.display(), source);
    if path.file_name().is_none() {
        return Err(io(IoError::new(ErrorKind::InvalidInput, "names no file")));
    }
    let _lock = OutputLock::beside(path)?;
    try_write(path, if_exists, flush, write).map_err(io)
}

fn try_write(
    path: &Path,
    if_exists: IfExists,
    flush: Flush,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    // The rename checks again; this check saves a long write.
    if if_exists == IfExists::Refuse && path.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let folder = folder_of(path);
    remove_leftovers(folder);
    let temp = temporary(folder)?;

    let mut out = Stream::new(temp.as_file(), temp.path(), flush);
    write(&mut out)?;
    out.finish()?;

    // Dropping the error of a failed rename removes the temporary file.
    match if_exists {
        IfExists::Replace => temp.persist(path),
        IfExists::Refuse => temp.persist_noclobber(path),
    }
    .map_err(|e| e.error)?;
    if flush == Flush::Now { sync_folder(folder) } else { Ok(()) }
}

/// Makes a temporary file that stays locked while it is open, so that nobody takes it for a leftover.
fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    loop {
        let temp = builder(0o666).tempfile_in(folder)?;
        // A file system without locks has no leftovers either: see `remove_leftovers`.
        let _ = temp.as_file().lock();
        // Another process may have removed it as a leftover before the lock.
        if temp.path().exists() {
            return Ok(temp);
        }
    }
}

/// Makes a temporary folder beside `path`, after removing leftovers there. The
/// lock keeps it while it is held; dropping the folder removes it.
pub(crate) fn temporary_folder(path: &Path) -> std::io::Result<(TempDir, Option<File>)> {
    let folder = folder_of(path);
    remove_leftovers(folder);
    loop {
        let temp = builder(0o777).tempdir_in(folder)?;
        // Systems that cannot open a folder cannot take it for a leftover either.
        let lock = File::open(temp.path()).ok();
        let _ = lock.as_ref().map(File::lock);
        // Another process may have removed it as a leftover before the lock.
        if temp.path().exists() {
            return Ok((temp, lock));
        }
    }
}

/// Names of temporary files and folders, with these permissions before the umask.
fn builder(mode: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Removes temporary files and folders, and locks, that killed processes left in a folder; nobody
/// holds them. Entries that cannot be removed stay.
///
/// A folder that holds an entry `old` stays too: its process was killed while it
/// replaced an output, and `old` may be the only copy.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        // Opening a pipe would wait for a writer.
        if !is_temporary(&entry.file_name()) || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        // Off Unix a lock cannot be told from its successor of the same name.
        if cfg!(not(unix)) && is_lock(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        // A lock whose holder ended since it was opened may have a successor, which is held.
        if file.try_lock().is_err() || !is_same(&file, &path) {
            continue;
        }
        let _ = match kind.is_dir() {
            true if path.join("old").symlink_metadata().is_ok() => Ok(()),
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
    }
}

/// Flushes a folder, so that a rename in it survives a power cut.
#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::File::open(folder)?.sync_all() {
        // Some file systems cannot flush a folder; the file is whole all the same.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// Does nothing: other systems cannot open a folder, and flush a rename by themselves.
#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}
