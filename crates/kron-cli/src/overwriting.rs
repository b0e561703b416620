//! Checks that an output does not overwrite an input.

use std::path::{Path, PathBuf};

use kron_adapter::peft::{self, CONFIG, WEIGHTS};

use crate::{Error, Result};

/// Fails if `out`, a folder or a file, equals `source`, contains it, or is a file inside it.
///
/// # Errors
/// A usage error with both names.
pub fn check_not_overwriting(source: &Path, out: &Path, out_is_folder: bool) -> Result<()> {
    check(peft::folder(source).unwrap_or(source), out, out_is_folder)
}

/// Fails if the file `out` is one that is read from the adapter `source`.
/// Another file inside the adapter's folder is allowed.
///
/// # Errors
/// A usage error with both names.
pub fn check_not_overwriting_files(source: &Path, out: &Path) -> Result<()> {
    match peft::folder(source) {
        None => check(source, out, false),
        Some(folder) => [CONFIG, WEIGHTS].iter().try_for_each(|name| check(&folder.join(name), out, false)),
    }
}

fn check(source: &Path, out: &Path, out_is_folder: bool) -> Result<()> {
    let (Some(read), Some(written)) = (canonical(source), canonical(out)) else { return Ok(()) };
    let as_file = read.is_dir() && (!out_is_folder || written.is_file());
    if read.starts_with(&written) || as_file && written.parent() == Some(read.as_path()) {
        return Err(Error::usage(format!(
            "{} is not written: that would change {}, which is read; give another place",
            out.display(),
            source.display()
        )));
    }
    Ok(())
}

/// The path without links. A file that does not exist yet gets its folder's canonical path and its own name.
fn canonical(path: &Path) -> Option<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Some(path);
    }
    let parent = path.parent()?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Some(canonical(parent)?.join(path.file_name()?))
}
