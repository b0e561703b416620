//! A shard as the system maps it into memory, one run of bytes after the other.
//!
//! What is mapped is copied out before it is used: another process may write to the
//! file, and a reference into the map would see that.
#![expect(unsafe_code, reason = "a map is read by its address, and SIGBUS is caught")]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::MmapOptions;

use super::shard::unreadable;
use crate::{Error, Result};

/// A file's bytes in order, of which only those that are being copied are mapped: a map
/// of a whole tensor would count as resident memory until its last byte is read.
pub struct Map {
    file: File,
    path: PathBuf,
    at: u64,
}

impl Map {
    /// From the byte `at` on.
    pub fn new(file: File, path: &Path, at: u64) -> Self {
        Self { file, path: path.into(), at }
    }

    /// Copies the next bytes, as many as there is room for in `to`.
    ///
    /// # Errors
    /// A file that has become too short, and what the system refuses.
    pub fn next(&mut self, to: &mut [u8]) -> Result<()> {
        let refused = |e: std::io::Error| unreadable(&self.path, &e);
        let end = self.at + to.len() as u64;
        // Bytes past the end would be SIGBUS.
        let len = self.file.metadata().map_err(refused)?.len();
        if len < end {
            let path = self.path.display();
            return Err(Error::data(format!("{path} was cut short to {len} bytes while it was merged")));
        }
        let mut options = MmapOptions::new();
        options.offset(self.at).len(to.len()).populate();
        let map = options.map_raw_read_only(&self.file).map_err(refused)?;
        // SAFETY: the map is readable for `to.len()` bytes, and nothing that Rust owns lies in
        // it, `to` least of all. A change by another process gives other bytes, no reference
        // sees it; one that cuts the file short or a disk that fails is `catch_bus_errors`'s.
        unsafe { std::ptr::copy_nonoverlapping(map.as_ptr(), to.as_mut_ptr(), to.len()) };
        self.at = end;
        Ok(())
    }
}

/// Makes the signal that reading a map can raise a sentence and an exit code.
///
/// # Errors
/// What the system refuses.
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

/// Elsewhere there is no such signal.
#[cfg(not(unix))]
pub fn catch_bus_errors() -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_in_order_and_up_to_the_end() {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..20_011).map(|i| (i * i / 13) as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).expect("room");
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
