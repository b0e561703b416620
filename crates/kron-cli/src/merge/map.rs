//! Bytes of a shard, read in order: through a memory map on Unix, with `read` elsewhere.
//!
//! Mapped bytes are copied before use, because another process may write to the file and a
//! reference into the map would see that.
#![cfg_attr(unix, expect(unsafe_code, reason = "a map is read by its address, and SIGBUS is caught"))]

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file's bytes in order. Only the bytes that are being copied are mapped, as a map of a
/// whole tensor would count as resident memory until its last byte is read.
pub struct Map {
    file: File,
    path: PathBuf,
    at: u64,
}

impl Map {
    /// Begins at the byte `at`, to which `file` is positioned.
    pub fn new(file: File, path: &Path, at: u64) -> Self {
        Self { file, path: path.into(), at }
    }

    /// Goes to the byte `at`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn jump(&mut self, at: u64) -> Result<()> {
        let moved = std::io::Seek::seek(&mut self.file, std::io::SeekFrom::Start(at));
        self.at = moved.map_err(|e| cannot_read(&self.path, &e))?;
        Ok(())
    }

    /// Copies the next `to.len()` bytes.
    ///
    /// # Errors
    /// The file has become too short, or the system refuses to map or read it.
    pub fn next(&mut self, to: &mut [u8]) -> Result<()> {
        let end = self.at + to.len() as u64;
        // On Unix, reading a map beyond the file's end raises SIGBUS.
        let len = self.file.metadata().map_err(|e| cannot_read(&self.path, &e))?.len();
        if len < end {
            let path = self.path.display();
            return Err(Error::data(format!("{path} was cut short to {len} bytes while it was merged")));
        }
        self.copy(to).map_err(|e| cannot_read(&self.path, &e))?;
        self.at = end;
        Ok(())
    }

    #[cfg(unix)]
    fn copy(&mut self, to: &mut [u8]) -> std::io::Result<()> {
        let mut options = memmap2::MmapOptions::new();
        options.offset(self.at).len(to.len()).populate();
        let map = options.map_raw_read_only(&self.file)?;
        // SAFETY: the map is readable for `to.len()` bytes, and no memory that Rust owns lies in
        // it, in particular not `to`. If another process changes the file, other bytes are copied;
        // no reference points into the map. If it truncates the file, or the disk fails, the
        // handler of `catch_bus_errors` ends the program.
        unsafe { std::ptr::copy_nonoverlapping(map.as_ptr(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    #[cfg(not(unix))]
    fn copy(&mut self, to: &mut [u8]) -> std::io::Result<()> {
        std::io::Read::read_exact(&mut self.file, to)
    }
}

/// Returns the error of a file that the system refuses to read.
pub fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::data(format!("{} cannot be read: {error}", path.display()))
}

/// Ends the program with a sentence and exit code 1 when reading a map raises SIGBUS.
///
/// # Errors
/// The system does not let the program catch the signal.
#[cfg(unix)]
pub fn catch_bus_errors() -> Result<()> {
    let end = || {
        let sentence = b"error: the model was cut short or its disk failed while it was merged; nothing half-written is under a final name\n";
        let _ = rustix::io::write(rustix::stdio::stderr(), sentence);
        signal_hook::low_level::exit(1)
    };
    // SAFETY: all that the handler does is one `write` and `_exit`, both safe in a signal handler.
    let registered = unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, end) };
    registered.map(drop).map_err(|e| Error::data(format!("signals cannot be caught: {e}")))
}

/// Does nothing: without a map, a failed read is an ordinary error.
///
/// # Errors
/// Never.
#[cfg(not(unix))]
pub fn catch_bus_errors() -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_in_order_and_up_to_the_end() {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..20_011).map(|i| (i * i / 13) as u8).collect();
        file.write_all(&bytes).expect("written");
        file.seek(SeekFrom::Start(7)).expect("a position");
        let mut map = Map::new(file, Path::new("m"), 7);
        let mut seen = Vec::new();
        for len in [1, 4096, 0, 9000, 6907] {
            let mut part = vec![0; len];
            map.next(&mut part).expect("bytes");
            seen.extend(part);
        }
        assert!(seen == bytes[7..]);
        let error = map.next(&mut [0]).expect_err("the end");
        assert_eq!(error.to_string(), "m was cut short to 20011 bytes while it was merged");
    }
}
