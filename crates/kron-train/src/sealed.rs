//! Memory that nobody can change any more, and that other processes of the host map.
//!
//! It is a file without a name; from [`Writer::seal`] on the system refuses writes and other lengths. Another process
//! opens it by the number of the process that made it, as long as that one has it.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "sealed memory is mapped"))]

use std::fs::File;
use std::io::{self, Write};

use bytes::Bytes;

/// Returns a name that the processes have in common which can open each other's memory; `None` where none can.
pub fn host() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let processes = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), processes.display()))
}

/// Memory that is being written.
pub struct Writer(File);

/// Memory that is sealed; others can open it until this is dropped.
pub struct Sealed {
    file: File,
    /// The bytes, which may live longer.
    pub bytes: Bytes,
}

impl Writer {
    /// Makes empty memory.
    ///
    /// # Errors
    /// The system has none, or refuses.
    pub fn new() -> io::Result<Self> {
        system::memory().map(Self)
    }

    /// Seals what was written, and maps it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn seal(self) -> io::Result<Sealed> {
        system::seal(&self.0)?;
        Ok(Sealed { bytes: system::map(&self.0)?, file: self.0 })
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Sealed {
    /// Returns the path by which processes of this [`host`] open the memory.
    pub fn path(&self) -> String {
        system::path(&self.file)
    }
}

/// Maps the memory at the path that its maker gave.
///
/// # Errors
/// There is no file, it is not sealed, or the system refuses.
pub fn open(path: &str) -> io::Result<Bytes> {
    system::map(&File::open(path)?)
}

#[cfg(target_os = "linux")]
mod system {
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

    use super::*;

    const SEALS: SealFlags =
        SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

    pub fn memory() -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        Ok(memfd_create("frozen weights", flags)?.into())
    }

    pub fn seal(file: &File) -> io::Result<()> {
        Ok(fcntl_add_seals(file, SEALS)?)
    }

    pub fn path(file: &File) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
    }

    pub fn map(file: &File) -> io::Result<Bytes> {
        if !fcntl_get_seals(file)?.contains(SEALS) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the memory is not sealed"));
        }
        // SAFETY: nobody can write to the file or change its length, for all seals are set, which nobody takes off and
        // which the system sets only while no map can be written to.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Bytes::from_owner(map))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::*;

    pub fn memory() -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn seal(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn path(_: &File) -> String {
        String::new()
    }

    pub fn map(_: &File) -> io::Result<Bytes> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn sealed_memory_is_read_by_its_path_and_cannot_change() {
        let mut writer = Writer::new().expect("memory");
        let values: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
        writer.write_all(&values).expect("written");
        let unsealed = format!("/proc/self/fd/{}", writer.0.as_raw_fd());
        let refused = open(&unsealed).expect_err("not sealed");
        assert_eq!(refused.to_string(), "the memory is not sealed");
        let sealed = writer.seal().expect("sealed");
        let path = sealed.path();
        let bytes = open(&path).expect("another map");
        assert_eq!((&bytes[..], &sealed.bytes[..]), (&values[..], &values[..]));
        let mut file = OpenOptions::new().write(true).open(&path).expect("the owner may open it");
        assert!(file.write(b"x").is_err() && file.set_len(1).is_err() && file.set_len(1 << 20).is_err());
        drop(sealed);
        assert!(open(&path).is_err() || open(&path).is_ok_and(|other| other != bytes));
        assert_eq!(bytes, values, "what is mapped stays");
    }

    #[test]
    fn a_host_has_one_name() {
        assert_eq!(host(), host());
        assert!(host().is_some());
    }
}
