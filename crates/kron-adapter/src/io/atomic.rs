//! A file under its name is whole, or it is not there.

use std::fs::{self, File};
use std::io::{Error as IoError, ErrorKind, Write};
use std::path::Path;

use super::stream::Stream;
use crate::{Error, Result};

/// The ends of a temporary file's name.
const PREFIX: &str = ".kron-";
const SUFFIX: &str = ".tmp";

/// What to do with a file that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IfExists {
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
/// process that is killed leaves a temporary file behind, which the next write
/// into the folder removes. A symbolic link at `path` is replaced, not followed.
///
/// On Linux the bytes of a large file go past the system's cache where the file
/// system lets them: they have to be on the disk in the end, and are copied once less.
///
/// # Errors
/// What `write` returns, and what the system refuses; the message names `path`.
/// An error in flushing the folder, after the rename, leaves the new file.
pub fn write_atomic(
    path: &Path,
    existing: IfExists,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    write_whole(path, existing, Flush::Now, write)
}

/// Who sees to it that a file is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// The writer: a file that has its name survives a power cut.
    Now,
    /// The system, when it likes, as after `cp`: a power cut within the next half minute may
    /// leave a file under its name that is cut short, and an error of a network's disk may go unseen.
    Later,
}

/// [`write_atomic`], with the flushes to the disk, of the file and of the folder, or without them.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_whole(
    path: &Path,
    existing: IfExists,
    flush: Flush,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let io = |source| Error::io(path.display(), source);
    try_write(path, existing, flush, write).map_err(io)
}

fn try_write(
    path: &Path,
    existing: IfExists,
    flush: Flush,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    if path.file_name().is_none() {
        return Err(IoError::new(ErrorKind::InvalidInput, "names no file"));
    }
    // Asked again by the rename; here so that a long write is not in vain.
    if existing == IfExists::Refuse && path.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    remove_leftovers(folder);
    let temp = temporary(folder)?;

    let mut out = Stream::new(temp.as_file(), temp.path(), flush);
    write(&mut out)?;
    out.finish()?;

    // Dropping what a failed rename gives back removes the temporary file.
    match existing {
        IfExists::Replace => temp.persist(path),
        IfExists::Refuse => temp.persist_noclobber(path),
    }
    .map_err(|e| e.error)?;
    if flush == Flush::Now { sync_folder(folder) } else { Ok(()) }
}

/// A temporary file that is locked for as long as it is open: a leftover is one that nobody holds.
fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let temp = builder.tempfile_in(folder)?;
        // On a file system without locks nothing counts as a leftover either.
        let _ = temp.as_file().lock();
        // Someone who removes leftovers may have come before the lock.
        if temp.path().exists() {
            return Ok(temp);
        }
    }
}

/// Removes the files and folders `.kron-*.tmp` that killed processes left in a
/// folder: those that nobody holds locked. What cannot be removed stays.
///
/// A folder with a file or folder `old` in it stays too: a process was killed
/// while it replaced that, and there may be no other copy.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        let Ok(kind) = entry.file_type() else { continue };
        // Opening a pipe would wait for a writer.
        if !ours || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let _ = match kind.is_dir() {
            true if path.join("old").symlink_metadata().is_ok() => Ok(()),
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
    }
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
