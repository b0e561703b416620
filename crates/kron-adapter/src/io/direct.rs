//! Writing past the system's cache, where the system offers it.

use std::fs::File;
use std::path::Path;

/// Opens a file for writes past the cache; `None` if the file system does not support them.
#[cfg(target_os = "linux")]
pub(super) fn open(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flag = rustix::fs::OFlags::DIRECT.bits();
    File::options().write(true).custom_flags(i32::try_from(flag).ok()?).open(path).ok()
}

/// Returns `None`: on other systems every write goes through the cache.
#[cfg(not(target_os = "linux"))]
pub(super) fn open(_: &Path) -> Option<File> {
    None
}
