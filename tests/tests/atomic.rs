//! A file under its name is whole, or it is not there.

use std::path::{Path, PathBuf};

use kron_adapter::io::write_atomic;
use kron_adapter::{Adapter, Error, IfExists};
use kron_tests::adapters::seeds;

/// The operating system's own error behind ours.
fn kind(error: &Error) -> Option<std::io::ErrorKind> {
    let source = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    Some(source.kind())
}

/// Names in a folder, sorted.
fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into()).collect();
    names.sort();
    names
}

#[test]
fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    std::fs::write(&path, "old").unwrap();
    // More than the buffer, so that half of it is on disk when the disk is said to be full.
    let full = |out: &mut dyn std::io::Write| {
        out.write_all(&vec![7; 3 << 20])?;
        Err(std::io::ErrorKind::StorageFull.into())
    };
    for existing in [IfExists::Replace, IfExists::Refuse] {
        let error = write_atomic(&path, existing, full).unwrap_err();
        assert!(error.to_string().contains("adapter.safetensors"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(listing(folder.path()), [Path::new("adapter.safetensors")]);
    }
    let fresh = folder.path().join("fresh");
    write_atomic(&fresh, IfExists::Refuse, full).unwrap_err();
    assert_eq!(listing(folder.path()), [Path::new("adapter.safetensors")]);
}

#[test]
fn a_writer_that_panics_leaves_nothing_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let write = || write_atomic(&path, IfExists::Replace, |_| panic!("on purpose"));
    std::panic::catch_unwind(write).unwrap_err();
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn an_existing_file_is_replaced_or_kept_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let (_, adapter) = seeds().remove(0);
    adapter.write(&path, IfExists::Refuse).unwrap();
    let first = std::fs::read(&path).unwrap();

    let (_, other) = seeds().remove(1);
    let error = other.write(&path, IfExists::Refuse).unwrap_err();
    assert!(kind(&error) == Some(std::io::ErrorKind::AlreadyExists));
    assert_eq!(std::fs::read(&path).unwrap(), first);

    other.write(&path, IfExists::Replace).unwrap();
    assert_eq!(other, Adapter::read(&path).unwrap());
    assert_eq!(listing(folder.path()), [Path::new("adapter.safetensors")]);

    // A file that appears while the other is being written is kept, too.
    let late = folder.path().join("late");
    let written = write_atomic(&late, IfExists::Refuse, |out| {
        std::fs::write(&late, "theirs")?;
        out.write_all(b"ours")
    });
    assert!(written.is_err());
    assert_eq!(std::fs::read(&late).unwrap(), b"theirs");
    assert_eq!(listing(folder.path()), [Path::new("adapter.safetensors"), Path::new("late")]);
}

#[test]
fn places_that_take_no_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, adapter) = seeds().remove(0);
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let before = listing(folder.path());
    for place in ["folder", "missing/adapter", "file/adapter", "folder/.."] {
        let path = folder.path().join(place);
        let error = adapter.write(&path, IfExists::Replace).unwrap_err();
        assert!(kind(&error).is_some(), "{place}: {error}");
        assert_eq!(listing(folder.path()), before, "{place}");
    }
    #[cfg(unix)]
    read_only_folder(folder.path(), &adapter);
}

#[cfg(unix)]
fn read_only_folder(parent: &Path, adapter: &Adapter) {
    use std::os::unix::fs::PermissionsExt;
    let folder = parent.join("read-only");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter"), "old").unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o555)).unwrap();
    // The superuser writes into any folder of a disk, but not into /proc.
    let root = std::fs::write(folder.join("probe"), "").is_ok();
    if root {
        assert!(adapter.write("/proc/adapter", IfExists::Replace).is_err());
    } else {
        assert!(adapter.write(folder.join("adapter"), IfExists::Replace).is_err());
        assert_eq!(std::fs::read(folder.join("adapter")).unwrap(), b"old");
        assert_eq!(listing(&folder), [Path::new("adapter")]);
    }
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn a_new_file_is_as_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    seeds().remove(0).1.write(&ours, IfExists::Replace).unwrap();
    std::fs::write(&plain, "").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

/// What a killed process left is removed by the next write into the folder, and nothing else is.
#[test]
fn leftovers_are_those_that_nobody_holds() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in [".kron-file.tmp", ".kron-held.tmp", ".kron-mine", "mine.tmp"] {
        std::fs::write(at(name), name).unwrap();
    }
    for name in [".kron-folder.tmp/new", ".kron-replaced.tmp/old", ".kron-mine.d/new"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    let held = std::fs::File::open(at(".kron-held.tmp")).unwrap();
    held.lock().unwrap();
    write_atomic(&at("new"), IfExists::Refuse, |out| out.write_all(b"here")).unwrap();
    let left = [".kron-held.tmp", ".kron-mine", ".kron-mine.d", ".kron-replaced.tmp", "mine.tmp", "new"];
    assert_eq!(listing(folder.path()), left.map(PathBuf::from));
    drop(held);
    write_atomic(&at("new"), IfExists::Replace, |out| out.write_all(b"again")).unwrap();
    assert!(!at(".kron-held.tmp").exists());
}

/// More than is written before the disk is asked to begin, in pieces of uneven lengths.
#[test]
fn a_long_file_is_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long");
    let piece: Vec<u8> = (0..(3 << 20) + 17).map(|i: usize| (i * 31 + i / 1000) as u8).collect();
    write_atomic(&path, IfExists::Refuse, |out| (0..70).try_for_each(|_| out.write_all(&piece))).unwrap();
    let written = std::fs::read(&path).unwrap();
    assert!(written.len() == 70 * piece.len() && written.chunks(piece.len()).all(|chunk| chunk == piece));
    assert_eq!(listing(folder.path()), [Path::new("long")]);
}

#[test]
fn a_name_without_a_folder_lands_in_the_working_folder() {
    // Cargo runs a test in its package's folder.
    let name = format!("format-test-{}.tmp", std::process::id());
    write_atomic(Path::new(&name), IfExists::Refuse, |out| out.write_all(b"here")).unwrap();
    let found = std::fs::read(&name);
    std::fs::remove_file(&name).unwrap();
    assert_eq!(found.unwrap(), b"here");
}

#[test]
fn values_that_are_not_finite_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    for (index, bad) in [(0, f32::NAN), (3, f32::INFINITY), (5, f32::NEG_INFINITY)] {
        let (_, mut adapter) = seeds().remove(0);
        adapter.thetas_mut().next().unwrap().as_mut_slice()[index] = bad;
        let error = adapter.write(folder.path().join("adapter"), IfExists::Replace).unwrap_err();
        assert!(error.to_string().contains(&format!("value {index} of θ of q is {bad}")), "{error}");
        assert!(adapter.to_bytes().is_err());
        assert!(listing(folder.path()).is_empty());
    }
}
