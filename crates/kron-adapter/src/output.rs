//! Writing an encoded adapter: a file or a folder appears whole or not at all.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::io::{
    IfExists, OutputLock, folder_of, remove_leftovers, sync_folder, temporary_folder, write_atomic,
};
use crate::{Error, Progress, Result, Suggestion};

/// Number of bytes between two calls of `progress`.
const PIECE: usize = 1 << 20;
/// File that others keep beside an adapter: its card.
const CARD: &str = "README.md";

/// An encoded adapter.
#[derive(Clone, Debug)]
pub enum Output {
    /// One file.
    File(Vec<u8>),
    /// A folder of these files, by name.
    Folder(Vec<(&'static str, Vec<u8>)>),
}

/// Writes an output under `out`; `progress` counts the bytes.
///
/// # Errors
/// Fails if the name is taken, under [`IfExists::Refuse`]. Under
/// [`IfExists::Replace`] a folder is replaced only if it holds an adapter and nothing else but a
/// README.md, which stays. Fails too if another process writes `out`, if `progress` fails and if
/// the system refuses. After an error `out` is as it was.
pub fn write_output(out: &Path, output: &Output, if_exists: IfExists, progress: Progress) -> Result<()> {
    let name = out.display();
    let there = out.symlink_metadata().ok();
    if there.is_some() && if_exists == IfExists::Refuse {
        return Err(Error::usage(format!("{name} exists")).with(Suggestion::Replace));
    }
    match output {
        Output::File(bytes) => {
            if there.is_some_and(|meta| meta.is_dir()) {
                return Err(Error::usage(format!("{name} is a folder, but a file is to be written")));
            }
            write_atomic(out, if_exists, |to| write_pieces(bytes, to, progress))
        }
        Output::Folder(files) => {
            if there.is_some_and(|meta| !meta.is_dir()) {
                return Err(Error::usage(format!("{name} is not a folder, but a PEFT adapter is one")));
            }
            write_folder(out, files, progress)
        }
    }
}

impl Output {
    /// Number of bytes of all files.
    pub fn bytes(&self) -> u64 {
        match self {
            Output::File(bytes) => bytes.len() as u64,
            Output::Folder(files) => files.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
        }
    }
}

fn write_pieces(bytes: &[u8], to: &mut dyn Write, progress: Progress) -> std::io::Result<()> {
    bytes.chunks(PIECE).try_for_each(|piece| {
        to.write_all(piece)?;
        progress(piece.len() as u64).map_err(std::io::Error::other)
    })
}

/// Writes a folder that does not exist: `write` fills a hidden one beside it, which is then renamed.
///
/// # Errors
/// Fails if the name is taken or another process writes it, if `write` fails and if the system
/// refuses. After an error there is no folder.
pub fn write_new_folder(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let refused = |e: std::io::Error| Error::io(out.display(), e);
    let _lock = OutputLock::beside(out)?;
    if out.symlink_metadata().is_ok() {
        return Err(Error::usage(format!("{} exists; give another name", out.display())));
    }
    let (temp, _held) = temporary_folder(out).map_err(refused)?;
    let new = temp.path().join("new");
    fs::create_dir(&new).map_err(refused)?;
    write(&new)?;
    fs::rename(&new, out).and_then(|()| sync_folder(folder_of(out))).map_err(refused)
}

/// Writes the files into a hidden folder beside `out`, then renames it.
fn write_folder(out: &Path, files: &[(&'static str, Vec<u8>)], progress: Progress) -> Result<()> {
    let refused = |e: std::io::Error| Error::io(out.display(), e);
    let _lock = OutputLock::beside(out)?;
    check_replaceable(out, files)?;
    // Dropping the folder, on any error, removes it.
    let (temp, _held) = temporary_folder(out).map_err(refused)?;
    let (new, old) = (temp.path().join("new"), temp.path().join("old"));
    fs::create_dir(&new).map_err(refused)?;
    for (name, bytes) in files {
        let mut file = fs::File::create_new(new.join(name)).map_err(refused)?;
        write_pieces(bytes, &mut file, progress).and_then(|()| file.sync_all()).map_err(refused)?;
    }
    match fs::copy(out.join(CARD), new.join(CARD)) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(refused(e)),
        _ => {}
    }
    sync_folder(&new).map_err(refused)?;
    let flush = || sync_folder(folder_of(out)).map_err(refused);
    if exchange(&new, out) {
        return flush();
    }
    match fs::rename(out, &old) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(refused(e)),
        _ => {}
    }
    fs::rename(&new, out).map_err(|e| {
        if !old.exists() || fs::rename(&old, out).is_ok() {
            return refused(e);
        }
        // The temporary folder has the only copy now, so that it stays.
        let kept = temp.keep().join("old");
        Error::io(format!("{} is now {}", out.display(), kept.display()), e)
    })?;
    flush()
}

/// Exchanges two folders in one step, so that the name always holds one; returns
/// false if the system cannot.
#[cfg(target_os = "linux")]
fn exchange(new: &Path, out: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, new, CWD, out, RenameFlags::EXCHANGE).is_ok()
}

/// Returns false: only Linux exchanges two folders in one step here.
#[cfg(not(target_os = "linux"))]
fn exchange(_new: &Path, _out: &Path) -> bool {
    false
}

/// Fails if the folder holds anything but an adapter and its card, which replacing it would lose.
fn check_replaceable(out: &Path, files: &[(&'static str, Vec<u8>)]) -> Result<()> {
    remove_leftovers(out);
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(out.display(), e))?;
        let name = entry.file_name();
        // A link or a pipe could not be copied as it is.
        let card = name == CARD && entry.file_type().is_ok_and(|kind| kind.is_file());
        if !card && !files.iter().any(|(file, _)| name == *file) {
            let refused = Error::usage(format!("{} holds {name:?}", out.display()));
            return Err(refused.with(Suggestion::OtherName));
        }
    }
    Ok(())
}
