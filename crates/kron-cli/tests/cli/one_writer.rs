//! An output has one writer at a time, and the others are told who it is.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kron_adapter::io::OutputLock;
use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use crate::adapters::peft;
use crate::golden::File;
use crate::models::{adapter, assert_merge_fails, merge, names, run, sharded, tensor};

/// A model of three small shards, and two adapters for it.
struct Place {
    dir: TempDir,
    base: PathBuf,
    adapters: [PathBuf; 2],
}

const SIDE: usize = 48;

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let modules = ["q", "k", "v"];
        let weight =
            |name: &&str| File::from([(format!("{name}.weight"), tensor(Dtype::F32, &[SIDE, SIDE], 1))]);
        let base = sharded(dir.path(), &modules.each_ref().map(weight), json!({}));
        let dims = LayerDims { d_out: SIDE, d_in: SIDE };
        let shapes = [
            KronShape::kron(dims, Split { a_out: 6, a_in: 6 }, 2).unwrap(),
            KronShape::kron(dims, Split { a_out: 2, a_in: 4 }, 3).unwrap(),
        ];
        let adapters = shapes.map(|shape| {
            let (written, _) = adapter(dir.path(), &modules.map(|module| (module, shape)));
            let path = dir.path().join(format!("adapter_{}.safetensors", shape.a_out()));
            std::fs::rename(written, &path).unwrap();
            path
        });
        Self { dir, base, adapters }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Returns the files of an undisturbed merge of each adapter.
    fn merged(&self) -> [BTreeMap<String, Vec<u8>>; 2] {
        self.adapters.each_ref().map(|adapter| {
            let out = self.dir.path().join("undisturbed");
            assert_eq!(merge(&self.base, adapter, &out, &["--force"]).0, 0);
            files(&out)
        })
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder).into_iter().map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap())).collect()
}

/// Every command that writes, each with an output that another process holds: nothing changes.
#[test]
fn held_outputs_are_refused_with_their_holder() {
    let place = Place::new();
    let (file, lokr) = (&place.adapters[0], peft("lokr"));
    let single = place.dir.path().join("single.safetensors");
    std::fs::copy(place.base.join("model-00001-of-00003.safetensors"), &single).unwrap();
    let one = place.dir.path().join("one.safetensors");
    let (code, _, err) = run(["convert".as_ref(), file.as_os_str(), one.as_os_str()]);
    assert_eq!(code, 0, "{err}");
    let words = |words: &[&dyn AsRef<std::ffi::OsStr>]| -> Vec<OsString> {
        words.iter().map(|word| (*word).as_ref().to_owned()).collect()
    };
    let out = place.out();
    let calls = [
        words(&[&"convert", file, &out]),
        words(&[&"convert", file, &out, &"--to", &"lora"]),
        words(&[&"convert", &lokr, &out, &"--to", &"lycoris"]),
        words(&[&"export", &"--lora", file, &out]),
        words(&[&"quantise", file, &"--bits", &"8", &"--out", &out]),
        words(&[&"inspect", file, &"--html", &out]),
    ];
    let mut rounds = 0;
    for force in [false, true] {
        for call in &calls {
            for _ in 0..4 {
                let held = OutputLock::beside(&out).unwrap();
                let before = names(place.dir.path());
                let refused = run(call.iter().cloned().chain(force.then(|| "--force".into())));
                let holder = format!("process {}", std::process::id());
                assert_merge_fails(refused, 2, &["is being written by", &holder]);
                assert_eq!(names(place.dir.path()), before, "{call:?}");
                drop(held);
                rounds += 1;
            }
        }
    }
    // The same for a folder that is filled file by file.
    let merged = merge(&place.base, file, &out, &[]);
    assert_eq!(merged.0, 0, "{merged:?}");
    let before = files(&out);
    for flags in [&["--force"][..], &["--resume"], &[]] {
        for adapter in &place.adapters {
            for _ in 0..8 {
                let held = OutputLock::folder(&out).unwrap();
                let refused = merge(&place.base, adapter, &out, flags);
                assert_merge_fails(refused, 2, &["is being written by", &std::process::id().to_string()]);
                drop(held);
                assert!(files(&out) == before, "{flags:?}");
                rounds += 1;
            }
        }
    }
    assert!(rounds >= 90, "{rounds}");
}

/// Two merges of different adapters into one folder, begun at the same moment.
#[test]
fn racing_merges_leave_one_of_them_whole() {
    let place = Place::new();
    let whole = place.merged();
    let (mut won, mut refused) = (0, 0);
    for round in 0..60 {
        let start = |adapter: &PathBuf| {
            let mut command = Command::new(assert_cmd::cargo::cargo_bin!("kron"));
            command.arg("merge").args([&place.base, adapter, &place.out()]).arg("--force");
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children = place.adapters.each_ref().map(start);
        let ends = children.map(|child| child.wait_with_output().unwrap());
        let mut last = Vec::new();
        for (i, end) in ends.iter().enumerate() {
            let err = String::from_utf8_lossy(&end.stderr);
            match end.status.code() {
                Some(0) => last.push(i),
                Some(2) if err.contains("is being written by kron (process ") => refused += 1,
                other => panic!("round {round}: {other:?} {err}"),
            }
        }
        won += last.len();
        let left = files(&place.out());
        assert!(last.iter().any(|&i| left == whole[i]), "round {round}: {last:?} {:?}", left.keys());
    }
    assert!(won >= 60 && won + refused == 120, "{won} won, {refused} were refused");
}

/// Leftovers of killed processes go, files, folders and locks; held ones and others' files stay.
#[test]
fn writers_of_other_names_in_a_folder_lose_nothing() {
    const ROUNDS: usize = 100;
    let place = Place::new();
    let adapter = place.adapters[0].to_str().unwrap();
    let commands: [&[&str]; 4] = [
        &["convert", adapter, "OUT", "--force"],
        &["export", "--lora", adapter, "OUT", "--force"],
        &["quantise", adapter, "--bits", "4", "--out", "OUT", "--force"],
        &["merge", place.base.to_str().unwrap(), adapter, "OUT", "--force"],
    ];
    let folder = place.dir.path().join("shared");
    std::fs::create_dir(&folder).unwrap();
    let outs: Vec<PathBuf> = (0..commands.len()).map(|i| folder.join(format!("out{i}"))).collect();
    let start = |(command, out): (&&[&str], &PathBuf)| {
        let args = command.iter().map(|arg| if *arg == "OUT" { out.as_os_str() } else { arg.as_ref() });
        Command::new(assert_cmd::cargo::cargo_bin!("kron"))
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let content = |out: &PathBuf| match out.is_dir() {
        true => files(out),
        false => BTreeMap::from([(String::new(), std::fs::read(out).unwrap())]),
    };
    let mut want = Vec::new();
    for one in commands.iter().zip(&outs) {
        let run = start(one).wait_with_output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        want.push(content(one.1));
    }
    for round in 0..ROUNDS {
        let running: Vec<_> = commands.iter().zip(&outs).map(start).collect();
        for (run, (out, want)) in running.into_iter().zip(outs.iter().zip(&want)) {
            let run = run.wait_with_output().unwrap();
            assert!(run.status.success(), "round {round}: {}", String::from_utf8_lossy(&run.stderr));
            assert!(content(out) == *want, "round {round}: {}", out.display());
        }
    }
    let left = names(&folder);
    assert_eq!(left.len(), outs.len(), "{left:?}");
}

#[test]
fn leftovers_that_nobody_holds_disturb_no_merge() {
    let place = Place::new();
    let out = place.out();
    std::fs::create_dir_all(out.join(".kron-dead.tmp/new")).unwrap();
    std::fs::write(out.join(".kron-dead2.tmp"), "half").unwrap();
    std::fs::write(out.join(".kron-model-00001-of-00003.safetensors.lock"), "kron (process 1)").unwrap();
    std::fs::write(out.join(".kron.lock"), "kron (process 1)").unwrap();
    let live = out.join(".kron-live.tmp");
    let held = std::fs::File::create(&live).unwrap();
    held.lock().unwrap();
    std::fs::write(out.join("README.md"), "mine").unwrap();
    let merged = merge(&place.base, &place.adapters[0], &out, &["--force"]);
    assert_eq!((merged.0, merged.2.as_str()), (0, ""));
    let left = names(&out);
    let hidden: Vec<&String> = left.iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(hidden, [".kron-live.tmp"]);
    assert_eq!(std::fs::read(out.join("README.md")).unwrap(), b"mine");
}

/// The program that writes a lock is dead: the next one takes it, whatever the file says.
#[test]
fn a_lock_ends_with_its_process() {
    let place = Place::new();
    let lock = place.dir.path().join(".kron-out.lock");
    std::fs::write(&lock, "kron (process 1)").unwrap();
    let (code, _, err) =
        run([&"convert".into(), &place.adapters[0].clone().into_os_string(), &place.out().into_os_string()]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(!lock.exists());
    // Nor does a name that is not a regular file hang or fail in another way.
    std::os::unix::fs::symlink(&place.adapters[0], &lock).unwrap();
    let before = std::fs::read(&place.adapters[0]).unwrap();
    let args = ["convert", "--force"].map(OsString::from);
    let paths = [place.adapters[1].clone(), place.out()].map(PathBuf::into_os_string);
    assert_merge_fails(run(args.into_iter().chain(paths)), 1, &["not a regular file"]);
    assert_eq!(std::fs::read(&place.adapters[0]).unwrap(), before);
}

/// A card that its owner wrote outlives the adapter beside it.
#[test]
fn a_card_survives_the_replacement_of_its_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lora");
    let args = |flags: &[&str]| {
        let paths = [peft("lokr"), out.clone()].map(PathBuf::into_os_string);
        let words = ["convert", "--to", "lora"].iter().chain(flags).map(OsString::from);
        run(words.chain(paths))
    };
    assert_eq!(args(&[]).0, 0);
    std::fs::write(out.join("README.md"), "a card").unwrap();
    assert_eq!(args(&["--force"]).0, 0);
    assert_eq!(std::fs::read(out.join("README.md")).unwrap(), b"a card");
    assert_eq!(names(&out), ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    assert_merge_fails(args(&["--force"]), 2, &["notes.txt"]);
    assert_eq!(std::fs::read(out.join("notes.txt")).unwrap(), b"mine");
}

/// Each command that writes, from a working directory that was removed.
#[test]
fn a_removed_working_directory_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    for call in [
        "convert a b",
        "merge a b c",
        "export --lora a b",
        "quantise a --bits 8 --out b",
        "inspect a --html b",
        "convert a b --base c",
    ] {
        let script = format!("mkdir gone && cd gone && rmdir ../gone && exec \"$KRON\" {call}");
        let run = Command::new("sh")
            .args(["-c", &script])
            .current_dir(dir.path())
            .env("KRON", assert_cmd::cargo::cargo_bin!("kron"))
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&run.stderr);
        assert!(matches!(run.status.code(), Some(1 | 2)), "{call}: {:?} {err}", run.status);
        assert_eq!(err.lines().count(), 1, "{call}: {err}");
    }
}
