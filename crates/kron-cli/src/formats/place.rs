//! Files and folders that appear under their name whole or not at all.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use kron_core::Existing;
use kron_core::io::write_atomic;

use super::peft::{CONFIG, WEIGHTS};
use crate::{Error, Result};

/// What a writer made.
pub enum Contents {
    /// One file.
    File(Vec<u8>),
    /// A PEFT folder.
    Folder {
        /// `adapter_config.json`.
        config: Vec<u8>,
        /// `adapter_model.safetensors`.
        weights: Vec<u8>,
    },
}

/// Puts `contents` under `out`.
///
/// # Errors
/// A name that is taken, unless `force`; then a folder is replaced when it
/// holds an adapter and nothing else, so that no other file is ever lost.
pub fn place(out: &Path, contents: &Contents, force: bool) -> Result<()> {
    let name = out.display();
    let there = out.symlink_metadata().ok();
    if there.is_some() && !force {
        return Err(Error::usage(format!("{name} exists; give another name, or --force to replace it")));
    }
    match contents {
        Contents::File(bytes) => {
            if there.is_some_and(|meta| meta.is_dir()) {
                return Err(Error::usage(format!("{name} is a folder, but a file is to be written")));
            }
            let existing = if force { Existing::Replace } else { Existing::Refuse };
            write_atomic(out, existing, |to| to.write_all(bytes)).map_err(|e| Error::data(e.to_string()))
        }
        Contents::Folder { config, weights } => {
            if there.is_some_and(|meta| !meta.is_dir()) {
                return Err(Error::usage(format!("{name} is no folder, but a PEFT adapter is one")));
            }
            folder(out, &[(CONFIG, config), (WEIGHTS, weights)])
        }
    }
}

/// Writes the files into a hidden folder beside `out`, then renames it.
fn folder(out: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let refused = |e: std::io::Error| Error::data(format!("{}: {e}", out.display()));
    check_replaceable(out)?;
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Dropping it, on any error, removes it.
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kron-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let temp = builder.tempdir_in(parent).map_err(refused)?;
    let (new, old) = (temp.path().join("new"), temp.path().join("old"));
    fs::create_dir(&new).map_err(refused)?;
    for (name, bytes) in files {
        let mut file = fs::File::create_new(new.join(name)).map_err(refused)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(refused)?;
    }
    match fs::rename(out, &old) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(refused(e)),
        _ => {}
    }
    fs::rename(&new, out).map_err(|e| {
        // Back to what was there; where even that fails, the first error is the one to tell.
        let _ = fs::rename(&old, out);
        refused(e)
    })
}

/// That replacing the folder loses nothing but an adapter.
fn check_replaceable(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(|e| Error::data(format!("{}: {e}", out.display())))?.file_name();
        if ![CONFIG, WEIGHTS, "README.md"].map(OsStr::new).contains(&entry.as_os_str()) {
            return Err(Error::usage(format!(
                "{} holds {entry:?}; --force replaces a folder only when it holds an adapter and nothing else",
                out.display()
            )));
        }
    }
    Ok(())
}
