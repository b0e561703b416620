//! Outputs on a full or read-only disk: one sentence, and nothing left behind.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use crate::golden::{File, golden, serialize};
use crate::models::{adapter, names, sharded, tensor};

/// A model and an adapter of some 100 kB each.
struct SmallModel {
    dir: TempDir,
    base: PathBuf,
    adapter: PathBuf,
}

impl SmallModel {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.safetensors");
        let weight = tensor(Dtype::F32, &[300, 100], 1);
        std::fs::write(&base, serialize(&File::from([("q.weight".into(), weight)]))).unwrap();
        let (adapter, _) = adapter(
            dir.path(),
            &[(
                "q",
                KronShape::krona(LayerDims { d_out: 300, d_in: 100 }, Split { a_out: 1, a_in: 1 }).unwrap(),
            )],
        );
        Self { dir, base, adapter }
    }

    /// Returns the call that merges a sharded model.
    fn sharded(&self, out: &Path) -> Vec<PathBuf> {
        let base = self.dir.path().join("base");
        if !base.exists() {
            let weight = tensor(Dtype::F32, &[300, 100], 1);
            sharded(self.dir.path(), &[File::from([("q.weight".into(), weight)])], json!({}));
        }
        vec!["merge".into(), base, self.adapter.clone(), out.to_path_buf()]
    }

    /// Returns a call of every command that writes, to `out` or into its folder.
    fn all_calls(&self, out: &Path, folder: &Path) -> Vec<Vec<PathBuf>> {
        let inspect = vec!["inspect".into(), self.adapter.clone(), "--html".into(), out.to_path_buf()];
        let man = vec!["man".into(), folder.to_path_buf()];
        [self.calls(out), vec![self.sharded(out), inspect, man]].concat()
    }

    /// Returns a call of every command that writes more than 64 kB to `out`.
    fn calls(&self, out: &Path) -> Vec<Vec<PathBuf>> {
        let [adapter, base, out] = [self.adapter.clone(), self.base.clone(), out.to_path_buf()];
        let word = PathBuf::from;
        vec![
            vec![word("convert"), adapter.clone(), out.clone()],
            vec![word("convert"), adapter.clone(), out.clone(), word("--to"), word("peft-lokr")],
            vec![word("convert"), adapter.clone(), out.clone(), word("--to"), word("lora")],
            vec![word("quantise"), adapter.clone(), word("--bits"), word("8"), word("--out"), out.clone()],
            vec![word("merge"), base, adapter.clone(), out],
        ]
    }
}

/// Runs `kron` after a line of shell; asserts exit code 1 and one sentence with the target and the reason.
fn refused(shell: &str, call: &[PathBuf], says: &[&str]) {
    let script = format!("{shell} exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(assert_cmd::cargo::cargo_bin!("kron")).args(call);
    let out = command.output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{call:?}: {err}");
    assert!(err.lines().count() == 1 && err.starts_with("error: "), "{err}");
    assert!(says.iter().all(|part| err.contains(part)), "{call:?}: {err}");
}

/// The system refuses to let a file grow beyond 32 blocks of 512 bytes.
#[test]
fn a_limit_on_the_size_of_files() {
    let small = SmallModel::new();
    let before = names(small.dir.path());
    for call in small.calls(&small.dir.path().join("out")) {
        refused("trap '' XFSZ; ulimit -f 32;", &call, &["/out", "File too large"]);
        assert_eq!(names(small.dir.path()), before, "{call:?}");
    }
}

/// Lines of shell that prepare the disk of 64 kB.
const FILLED: &str = "cat /dev/zero >\"$DISK/fill\" 2>/dev/null";
const READ_ONLY: &str = "mount -o remount,ro none \"$DISK\"";

/// Runs `kron` with a disk of 64 kB at `disk`, prepared by a line of shell. Returns the exit code, the
/// files on the disk and the standard error; `None` where the system lets us mount no disk.
fn on_a_disk(disk: &Path, prepare: &str, call: &[PathBuf]) -> Option<(Option<i32>, String, String)> {
    let script = format!(
        "mount -t tmpfs -o size=64k none \"$DISK\" || exit 77\n{prepare}\n\"$0\" \"$@\"; code=$?\n\
         find \"$DISK\" -mindepth 1 -printf '%P\\n' | sort\nexit $code\n"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script]).env("DISK", disk);
    let done = command.arg(assert_cmd::cargo::cargo_bin!("kron")).args(call).output().ok()?;
    let [out, err] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    err.starts_with("error: ").then_some((done.status.code(), out, err)).or_else(|| {
        eprintln!("skipped: a file system of our own cannot be mounted here");
        None
    })
}

/// A disk that fills up during the write.
#[test]
fn a_full_disk() {
    let (small, disk) = (SmallModel::new(), tempfile::tempdir().unwrap());
    for call in small.calls(&disk.path().join("out")) {
        let Some((code, left, err)) = on_a_disk(disk.path(), "", &call) else { return };
        assert_eq!((code, err.lines().count()), (Some(1), 1), "{call:?}: {err}");
        assert!(err.contains("/out") && err.contains("No space left"), "{call:?}: {err}");
        assert_eq!(left, "", "{call:?}");
    }
    // A merge of shards that stopped is taken up again: its journal stays, half a shard does not.
    let call = small.sharded(&disk.path().join("out"));
    let Some((code, left, err)) = on_a_disk(disk.path(), "", &call) else { return };
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("/out/model-00001-of-00001.safetensors") && err.contains("No space left"), "{err}");
    assert_eq!(left, "out\nout/.kron-merge.json\n");
}

/// Disks that accept no byte.
#[test]
fn a_disk_that_is_full_before_and_one_that_is_read_only() {
    let (small, disk) = (SmallModel::new(), tempfile::tempdir().unwrap());
    let out = disk.path().join("out");
    for (prepare, says, there) in
        [(FILLED, "No space left on device", "fill\n"), (READ_ONLY, "Read-only file system", "")]
    {
        for call in small.all_calls(&out, disk.path()) {
            let Some((code, left, err)) = on_a_disk(disk.path(), prepare, &call) else { return };
            assert_eq!((code, err.lines().count()), (Some(1), 1), "{call:?}: {err}");
            let place = disk.path().to_str().unwrap();
            assert!(err.contains(place) && err.contains(says), "{call:?}: {err}");
            assert_eq!(left, there, "{call:?}");
        }
    }
}

/// A file system that refuses even root, a file where a folder should be, and a missing folder.
#[test]
fn folders_that_nobody_may_write_to() {
    let small = SmallModel::new();
    let before = names(small.dir.path());
    for place in [Path::new("/proc/kron-out"), &small.base.join("out"), &small.dir.path().join("no/out")] {
        for call in small.calls(place) {
            refused("", &call, &[&place.display().to_string()]);
            assert_eq!(names(small.dir.path()), before, "{call:?}");
        }
    }
}

/// The report cannot be written: exit code 1.
#[test]
fn a_standard_output_that_is_full() {
    let small = SmallModel::new();
    for command in ["inspect", "quantise --bits 4", "plan llama-2-7b"] {
        let adapter = if command.starts_with("plan") { "" } else { "\"$1\"" };
        let script = format!("\"$0\" {command} {adapter} >/dev/full");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(assert_cmd::cargo::cargo_bin!("kron")).arg(&small.adapter);
        let out = shell.output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{command}: {err}");
        assert!(err.contains("standard output cannot be written"), "{command}: {err}");
    }
}

/// The golden adapters are never opened for writing.
#[test]
fn sources_are_left_alone() {
    let source = golden().join("model_llama/lokr");
    let when = |name: &str| source.join(name).metadata().unwrap().modified().unwrap();
    let before = ["adapter_config.json", "adapter_model.safetensors"].map(when);
    let dir = tempfile::tempdir().unwrap();
    let call = ["convert".into(), source.clone(), dir.path().join("out")];
    assert_eq!(crate::models::run(call).0, 0);
    assert_eq!(["adapter_config.json", "adapter_model.safetensors"].map(when), before);
}

/// A standard error that takes nothing leaves the exit code, and a closed pipe is no error.
#[test]
#[cfg(target_os = "linux")]
fn messages_that_cannot_be_written_are_no_panic() {
    let kron = assert_cmd::cargo::cargo_bin!("kron");
    for (call, code) in [("inspect nofile", 1), ("nosuch", 2), ("inspect nofile --json", 1), ("--help", 0)] {
        let full = format!("\"$KRON\" {call} 2>/dev/full >/dev/null");
        let run = std::process::Command::new("sh").args(["-c", &full]).env("KRON", kron).status().unwrap();
        assert_eq!(run.code(), Some(code), "{call}");
    }
    for call in ["completions bash", "--help", "plan mistral-7b"] {
        let closed = format!("(\"$KRON\" {call}; echo $? >&2) | true");
        let run = std::process::Command::new("sh").args(["-c", &closed]).env("KRON", kron).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&run.stderr), "0\n", "{call}");
    }
}
