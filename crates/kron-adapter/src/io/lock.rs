//! Advisory locks: an output has one writer at a time.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::identity::is_same;
use super::names::{FOLDER_LOCK, LOCK, PREFIX, folder_of};
use crate::{Error, Result};

/// Longest part of an output's name that its lock file's name takes, in bytes.
const MAX_NAME: usize = 200;
/// Longest name of a holder that is read, in bytes.
const MAX_HOLDER: u64 = 200;
/// Pauses before a lock is given up: a holder may be about to end.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// The right to write an output, until it is dropped or the process ends.
///
/// The lock is a file `.kron-NAME.lock` beside the output, or `.kron.lock` in it, that is locked
/// and holds the name of its program. On Unix its end removes the file; a killed process leaves
/// it, unlocked, and the next writer takes it. Readers need no lock, and a file system without
/// locks gives none.
///
/// ```
/// use kron_adapter::io::OutputLock;
///
/// # let folder = tempfile::tempdir()?;
/// let lock = OutputLock::folder(folder.path())?;
/// let error = OutputLock::folder(folder.path()).unwrap_err();
/// assert!(error.message().contains(&format!("process {}", std::process::id())));
/// drop(lock);
/// assert!(OutputLock::folder(folder.path()).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct OutputLock {
    file: File,
    path: PathBuf,
}

impl OutputLock {
    /// Locks an output that appears under its name as a whole: a file, or a folder that is renamed.
    ///
    /// # Errors
    /// Fails if another writer holds the lock, which the message names, and if the system refuses.
    pub fn beside(out: &Path) -> Result<Self> {
        Self::take(&Self::path_beside(out), out)
    }

    fn path_beside(out: &Path) -> PathBuf {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let mut end = name.len().min(MAX_NAME);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        folder_of(out).join(format!("{PREFIX}{}{LOCK}", &name[..end]))
    }

    /// Locks as [`OutputLock::beside`] does; `None` if another writer holds the lock.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn beside_if_free(out: &Path) -> Result<Option<Self>> {
        Ok(Self::attempt(&Self::path_beside(out), out, 0)?.ok())
    }

    /// Locks an existing folder whose files are written one by one.
    ///
    /// # Errors
    /// Fails as [`OutputLock::beside`] does.
    pub fn folder(folder: &Path) -> Result<Self> {
        Self::take(&folder.join(FOLDER_LOCK), folder)
    }

    /// Locks as [`OutputLock::folder`] does; `None` if another writer holds the lock.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn folder_if_free(folder: &Path) -> Result<Option<Self>> {
        Ok(Self::attempt(&folder.join(FOLDER_LOCK), folder, 0)?.ok())
    }

    fn take(path: &Path, out: &Path) -> Result<Self> {
        Self::attempt(path, out, ATTEMPTS)?.map_err(|mut file| held(out, &mut file))
    }

    /// Returns the lock, or the file that another writer has locked, after so many pauses.
    fn attempt(path: &Path, out: &Path, pauses: usize) -> Result<Result<Self, File>> {
        let refused = |e| Error::io(format!("{} cannot be locked by {}", out.display(), path.display()), e);
        let mut attempt = 0;
        loop {
            let mut file = open(path).map_err(refused)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if attempt == pauses => {
                    return Ok(Err(file));
                }
                Err(TryLockError::WouldBlock) => {
                    attempt += 1;
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(TryLockError::Error(e)) if is_without_locks(&e) => {}
                Err(TryLockError::Error(e)) => return Err(refused(e)),
                Ok(()) => {}
            }
            // The last holder may have removed it before the lock.
            if is_same(&file, path) {
                let named = file.set_len(0).and_then(|()| file.write_all(holder().as_bytes()));
                let lock = Self { file, path: path.into() };
                return named.map(|()| Ok(lock)).map_err(|e| Error::io(out.display(), e));
            }
        }
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // Elsewhere a second process could lock the removed file beside a third with a new one.
        if cfg!(unix) && is_same(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Returns true if the file system has no locks, or its server has none left.
fn is_without_locks(e: &std::io::Error) -> bool {
    #[cfg(unix)]
    if e.raw_os_error() == Some(rustix::io::Errno::NOLCK.raw_os_error()) {
        return true;
    }
    e.kind() == std::io::ErrorKind::Unsupported
}

/// Opens a lock file, which is regular and not a link.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.bits() as i32);
    }
    if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
        let message = format!("{} is not a regular file, but a lock is one", path.display());
        return Err(std::io::Error::other(message));
    }
    options.open(path)
}

/// Returns this process's name for the others.
fn holder() -> String {
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(Path::file_name).map(OsStr::to_os_string);
    let program = program.unwrap_or_else(|| OsString::from("a program"));
    format!("{} (process {})", program.to_string_lossy(), std::process::id())
}

/// Returns the error of an output that another process writes.
fn held(out: &Path, lock: &mut File) -> Error {
    let mut holder = Vec::new();
    // Windows does not let others read a locked file.
    let _ = lock.rewind().and_then(|()| lock.take(MAX_HOLDER).read_to_end(&mut holder));
    let holder = match String::from_utf8_lossy(&holder) {
        name if name.is_empty() => "another process".into(),
        name => name,
    };
    Error::usage(format!(
        "{} is being written by {holder}, but an output has one writer at a time",
        out.display()
    ))
}
