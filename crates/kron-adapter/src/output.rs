//! Files and folders that appear under their name whole or not at all.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::IfExists;
use crate::io::{remove_leftovers, write_atomic};

use crate::peft::{CONFIG, WEIGHTS};
use crate::{Error, Result, Suggestion, Watch};

/// Bytes between two calls of the watch.
const PIECE: usize = 1 << 20;

/// What lies on the disk when it is written.
#[derive(Clone, Debug)]
pub enum Output {
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

/// Puts `contents` under `out`; `watch` is told of the bytes.
///
/// # Errors
/// A name that is taken, under [`IfExists::Refuse`]. Under [`IfExists::Replace`]
/// a folder is replaced when it holds an adapter and nothing else, so that no
/// other file is ever lost. The watch's error, and what the system refuses.
/// After an error `out` is as it was.
pub fn write_output(out: &Path, contents: &Output, existing: IfExists, watch: Watch) -> Result<()> {
    let name = out.display();
    let there = out.symlink_metadata().ok();
    if there.is_some() && existing == IfExists::Refuse {
        return Err(Error::usage(format!("{name} exists")).with(Suggestion::Replace));
    }
    match contents {
        Output::File(bytes) => {
            if there.is_some_and(|meta| meta.is_dir()) {
                return Err(Error::usage(format!("{name} is a folder, but a file is to be written")));
            }
            Ok(write_atomic(out, existing, |to| put(bytes, to, watch))?)
        }
        Output::Folder { config, weights } => {
            if there.is_some_and(|meta| !meta.is_dir()) {
                return Err(Error::usage(format!("{name} is no folder, but a PEFT adapter is one")));
            }
            folder(out, &[(CONFIG, config), (WEIGHTS, weights)], watch)
        }
    }
}

impl Output {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        match self {
            Output::File(bytes) => bytes.len() as u64,
            Output::Folder { config, weights } => (config.len() + weights.len()) as u64,
        }
    }
}

fn put(bytes: &[u8], to: &mut dyn Write, watch: Watch) -> std::io::Result<()> {
    bytes.chunks(PIECE).try_for_each(|piece| {
        to.write_all(piece)?;
        watch(piece.len() as u64).map_err(std::io::Error::other)
    })
}

/// Writes the files into a hidden folder beside `out`, then renames it.
fn folder(out: &Path, files: &[(&str, &[u8])], watch: Watch) -> Result<()> {
    let refused = |e: std::io::Error| Error::data(format!("{}: {e}", out.display()));
    check_replaceable(out)?;
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    remove_leftovers(parent);
    // Dropping it, on any error, removes it.
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kron-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let temp = builder.tempdir_in(parent).map_err(refused)?;
    // Locked it is no leftover; where a folder cannot be, nobody takes it for one.
    let lock = fs::File::open(temp.path());
    let _ = lock.as_ref().map(|lock| lock.lock());
    let (new, old) = (temp.path().join("new"), temp.path().join("old"));
    fs::create_dir(&new).map_err(refused)?;
    for (name, bytes) in files {
        let mut file = fs::File::create_new(new.join(name)).map_err(refused)?;
        put(bytes, &mut file, watch).and_then(|()| file.sync_all()).map_err(refused)?;
    }
    if exchanged(&new, out) {
        return Ok(());
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

/// Whether two folders changed places in one step, so that there is always one
/// under the name; not every system can.
fn exchanged(new: &Path, out: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, new, CWD, out, RenameFlags::EXCHANGE).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (new, out);
        false
    }
}

/// That replacing the folder loses nothing but an adapter.
fn check_replaceable(out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(|e| Error::data(format!("{}: {e}", out.display())))?.file_name();
        if ![CONFIG, WEIGHTS, "README.md"].map(OsStr::new).contains(&entry.as_os_str()) {
            let refused = Error::usage(format!("{} holds {entry:?}", out.display()));
            return Err(refused.with(Suggestion::OtherName));
        }
    }
    Ok(())
}
