//! Reading files without trusting their size.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::layout::Layout;
use crate::{Error, Result};

/// Longest safetensors header that is read, in bytes: the `safetensors` library's own limit.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// A regular file, open, with its length.
#[derive(Debug)]
pub struct Input {
    path: String,
    file: File,
    len: u64,
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// Fails if the path names anything but a regular file, if the file is longer,
/// and if the system refuses.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut input = Input::open(path)?;
    if input.len > limit {
        let Input { path, len, .. } = input;
        return Err(Error::data(format!("{path} is {len} bytes long, but the limit is {limit}")));
    }
    let mut bytes = Vec::new();
    input.append(input.len, &mut bytes)?;
    Ok(bytes)
}

/// Opens a file without waiting: a pipe would wait for a writer.
fn open_at_once(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NONBLOCK.bits() as i32);
    options.read(true).open(path)
}

impl Input {
    /// Opens a file.
    ///
    /// # Errors
    /// Fails if the path names anything but a regular file, and if the system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let refused = |e| Error::io(format!("{name} cannot be read"), e);
        // A device can act when it is opened, and the file may be another by then.
        let is_file = path.metadata().map_err(refused)?.is_file();
        let opened = is_file.then(|| open_at_once(path)).transpose().map_err(refused)?;
        let meta = opened.as_ref().map(File::metadata).transpose().map_err(refused)?;
        match (opened, meta) {
            (Some(file), Some(meta)) if meta.is_file() => Ok(Self { path: name, file, len: meta.len() }),
            _ => Err(Error::data(format!("{name} is not a regular file"))),
        }
    }

    /// Path of the file, as messages give it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Length of the file in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a size, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns the file, positioned where reading stopped.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Reads the header of a safetensors file: its bytes and their meaning.
    ///
    /// # Errors
    /// Fails if the file is truncated or is not a safetensors file, and if the system refuses.
    pub fn layout(&mut self) -> Result<(Vec<u8>, Layout)> {
        self.layout_within(MAX_HEADER)
    }

    pub(crate) fn layout_within(&mut self, limit: u64) -> Result<(Vec<u8>, Layout)> {
        Layout::read(&mut self.file, self.len, limit).map_err(|e| e.about(&self.path))
    }

    /// Passes over the next `len` bytes.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub fn skip(&mut self, len: u64) -> Result<()> {
        let moved = i64::try_from(len).map_err(std::io::Error::other);
        let moved = moved.and_then(|len| self.file.seek(SeekFrom::Current(len)));
        moved.map(drop).map_err(|e| Error::io(format!("{} cannot be read", self.path), e))
    }

    /// Appends the next `len` bytes, or as many as are left.
    ///
    /// # Errors
    /// Fails if memory cannot hold them, and if the system refuses.
    pub fn append(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<()> {
        if !usize::try_from(len).is_ok_and(|len| bytes.try_reserve_exact(len).is_ok()) {
            let path = &self.path;
            return Err(Error::data(format!("cannot allocate {len} bytes for {path}")));
        }
        let read = Read::take(&mut self.file, len).read_to_end(bytes);
        read.map(drop).map_err(|e| Error::io(format!("{} cannot be read", self.path), e))
    }
}
