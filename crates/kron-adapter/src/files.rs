//! Reading files without trusting their size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::io::Layout;

use crate::{Error, Result};

/// The longest safetensors header that is read: the `safetensors` library's own limit.
const MOST_HEADER: u64 = 100_000_000;

/// A regular file, open, with its length.
#[derive(Debug)]
pub struct Input {
    path: String,
    file: File,
    len: u64,
}

/// The bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// Anything but a regular file, one that is longer, and what the system refuses.
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

impl Input {
    /// Opens a file.
    ///
    /// # Errors
    /// Anything but a regular file, and what the system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let refused = |e| Error::data(format!("{name} cannot be read: {e}"));
        // A pipe would block when opened, a device would never end.
        let meta = path.metadata().map_err(refused)?;
        if !meta.is_file() {
            return Err(Error::data(format!("{name} is not a regular file")));
        }
        let file = File::open(path).map_err(refused)?;
        Ok(Self { path: name, file, len: meta.len() })
    }

    /// The file's name, as messages give it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The file's length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a size, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The rest of the file, from where it was read to.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Reads a safetensors file's header: its bytes and what they say.
    ///
    /// # Errors
    /// A file that is no safetensors file or cut short, and what the system refuses.
    pub fn layout(&mut self) -> Result<(Vec<u8>, Layout)> {
        Layout::read(Path::new(&self.path), &mut self.file, self.len, MOST_HEADER)
            .map_err(|e| Error::data(e.to_string()))
    }

    /// Reads the next `len` bytes onto the end of `bytes`, or what there is of them.
    ///
    /// # Errors
    /// More than memory has room for, and what the system refuses.
    pub fn append(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<()> {
        if !usize::try_from(len).is_ok_and(|len| bytes.try_reserve_exact(len).is_ok()) {
            let path = &self.path;
            return Err(Error::data(format!("{len} bytes of {path} are to be read, but memory has no room")));
        }
        let read = Read::take(&mut self.file, len).read_to_end(bytes);
        read.map(drop).map_err(|e| Error::data(format!("{} cannot be read: {e}", self.path)))
    }
}
