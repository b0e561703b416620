//! Writing an encoded adapter: a file or a folder appears whole or not at all.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::io::{
    FOLDER_LOCK, IfExists, OutputLock, folder_of, remove_leftovers, sync_folder, temporary_folder,
    write_atomic,
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
        return Err(exists(out));
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
            write_folder(out, files, if_exists, progress)
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
    place_new(&new, out).and_then(|()| sync_folder(folder_of(out))).map_err(refused)
}

/// Writes the files into a hidden folder beside `out`, then renames it.
fn write_folder(
    out: &Path,
    files: &[(&'static str, Vec<u8>)],
    if_exists: IfExists,
    progress: Progress,
) -> Result<()> {
    let refused = |e: std::io::Error| Error::io(out.display(), e);
    let _lock = OutputLock::beside(out)?;
    // A merge or a training run writes into the folder itself.
    let replaces = if_exists == IfExists::Replace && out.is_dir();
    let _inside = replaces.then(|| OutputLock::folder(out)).transpose()?;
    if replaces {
        check_replaceable(out, out, files)?;
    }
    // Dropping the folder, on any error, removes it.
    let (temp, _held) = temporary_folder(out).map_err(refused)?;
    let (new, old) = (temp.path().join("new"), temp.path().join("old"));
    fs::create_dir(&new).map_err(refused)?;
    for (name, bytes) in files {
        let mut file = fs::File::create_new(new.join(name)).map_err(refused)?;
        write_pieces(bytes, &mut file, progress).and_then(|()| file.sync_all()).map_err(refused)?;
    }
    if replaces {
        match fs::copy(out.join(CARD), new.join(CARD)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(refused(e)),
            _ => {}
        }
    }
    sync_folder(&new).map_err(refused)?;
    if !replaces {
        place_new(&new, out).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty => exists(out),
            _ => refused(e),
        })?;
    } else if exchange(&new, out) {
        // Somebody may have added a file since the first check.
        if let Err(e) = check_replaceable(&new, out, files) {
            if exchange(&new, out) {
                return Err(e);
            }
            let kept = temp.keep().join("new");
            return Err(Error::data(format!("{} is now {}: {e}", out.display(), kept.display())));
        }
    } else {
        fs::rename(out, &old).map_err(refused)?;
        let placed =
            check_replaceable(&old, out, files).and_then(|()| fs::rename(&new, out).map_err(refused));
        placed.map_err(|e| {
            if fs::rename(&old, out).is_ok() {
                return e;
            }
            let kept = temp.keep().join("old");
            Error::data(format!("{} is now {}: {e}", out.display(), kept.display()))
        })?;
    }
    sync_folder(folder_of(out)).map_err(refused)
}

fn exists(out: &Path) -> Error {
    Error::usage(format!("{} exists", out.display())).with(Suggestion::Replace)
}

/// Renames a folder to a name that is free.
#[cfg(target_os = "linux")]
fn place_new(new: &Path, out: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, out, RenameFlags::NOREPLACE) {
        // Some file systems know no flags.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => place_checked(new, out),
        placed => Ok(placed?),
    }
}

#[cfg(not(target_os = "linux"))]
fn place_new(new: &Path, out: &Path) -> std::io::Result<()> {
    place_checked(new, out)
}

fn place_checked(new: &Path, out: &Path) -> std::io::Result<()> {
    match out.symlink_metadata() {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(new, out),
    }
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

/// Fails if `folder`, which is or was `out`, holds anything but an adapter and its card, which replacing it would lose.
fn check_replaceable(folder: &Path, out: &Path, files: &[(&'static str, Vec<u8>)]) -> Result<()> {
    remove_leftovers(folder);
    for entry in fs::read_dir(folder).map_err(|e| Error::io(out.display(), e))? {
        let entry = entry.map_err(|e| Error::io(out.display(), e))?;
        let name = entry.file_name();
        // A link or a pipe could not be copied as it is.
        let card = name == CARD && entry.file_type().is_ok_and(|kind| kind.is_file());
        if !card && name != FOLDER_LOCK && !files.iter().any(|(file, _)| name == *file) {
            let refused = Error::usage(format!("{} holds {name:?}", out.display()));
            return Err(refused.with(Suggestion::OtherName));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

    fn folder(byte: u8) -> Output {
        Output::Folder(NAMES.map(|name| (name, vec![byte; 10])).to_vec())
    }

    /// Writes a folder while `meanwhile` happens, and returns its result.
    fn write_while(out: &Path, if_exists: IfExists, meanwhile: impl Fn() + Sync) -> Result<()> {
        write_output(out, &folder(2), if_exists, &|_| {
            meanwhile();
            Ok(())
        })
    }

    /// A folder or a file that appears during a write is nobody's to replace.
    #[test]
    fn what_appears_meanwhile_stays() {
        let place = tempfile::tempdir().unwrap();
        for (i, if_exists) in [IfExists::Refuse, IfExists::Replace].into_iter().enumerate() {
            let out = place.path().join(format!("new{i}"));
            let error = write_while(&out, if_exists, || {
                fs::create_dir_all(&out).unwrap();
                fs::write(out.join("thesis.txt"), "mine").unwrap();
            });
            assert!(error.unwrap_err().message().contains("exists"));
            assert_eq!(fs::read(out.join("thesis.txt")).unwrap(), b"mine");
            assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        }
        // An empty folder may be one that a merge is about to lock.
        let out = place.path().join("new2");
        let error = write_while(&out, IfExists::Refuse, || fs::create_dir_all(&out).unwrap());
        assert!(error.unwrap_err().message().contains("exists"));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        let out = place.path().join("old");
        write_output(&out, &folder(1), IfExists::Refuse, &|_| Ok(())).unwrap();
        let error =
            write_while(&out, IfExists::Replace, || fs::write(out.join("notes.txt"), "mine").unwrap());
        assert!(error.unwrap_err().message().contains("notes.txt"));
        assert_eq!(fs::read(out.join("notes.txt")).unwrap(), b"mine");
        assert_eq!(fs::read(out.join(NAMES[1])).unwrap(), [1; 10]);
        fs::remove_file(out.join("notes.txt")).unwrap();
        write_output(&out, &folder(3), IfExists::Replace, &|_| Ok(())).unwrap();
        assert_eq!(fs::read(out.join(NAMES[1])).unwrap(), [3; 10]);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 4, "no temporary folder and no lock is left");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    }

    /// A folder is locked for those who write it whole and for those who write into it.
    #[test]
    fn a_replaced_folder_is_locked_twice() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        write_output(&out, &folder(1), IfExists::Refuse, &|_| Ok(())).unwrap();
        write_while(&out, IfExists::Replace, || {
            assert!(OutputLock::beside(&out).is_err() && OutputLock::folder(&out).is_err());
        })
        .unwrap();
        let held = OutputLock::folder(&out).unwrap();
        assert!(write_while(&out, IfExists::Replace, || ()).unwrap_err().message().contains("being written"));
        drop(held);
        assert!(write_while(&out, IfExists::Replace, || ()).is_ok());
    }
}
