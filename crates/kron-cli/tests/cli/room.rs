//! Places without room, or that nobody may write to: one sentence, and nothing left behind.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

use kron_core::KronShape;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::folder::{File, golden, serialize};
use crate::toy::{adapter, names, tensor};

/// A model and an adapter of some 100 kB each.
struct Toy {
    dir: TempDir,
    base: PathBuf,
    adapter: PathBuf,
}

impl Toy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.safetensors");
        let weight = tensor(Dtype::F32, &[300, 100], 1);
        std::fs::write(&base, serialize(&File::from([("q.weight".into(), weight)]))).unwrap();
        let (adapter, _) = adapter(dir.path(), &[("q", KronShape::krona(300, 100, 1, 1).unwrap())]);
        Self { dir, base, adapter }
    }

    /// Every command that writes, with `out` as its target.
    fn calls(&self, out: &Path) -> Vec<Vec<PathBuf>> {
        let [adapter, base, out] = [self.adapter.clone(), self.base.clone(), out.to_path_buf()];
        let word = PathBuf::from;
        vec![
            vec![word("convert"), adapter.clone(), out.clone()],
            vec![word("convert"), adapter.clone(), out.clone(), word("--to"), word("peft-lokr")],
            vec![word("export"), word("--lora"), adapter.clone(), out.clone()],
            vec![word("quantise"), adapter.clone(), word("--bits"), word("8"), word("--out"), out.clone()],
            vec![word("merge"), base, adapter.clone(), out],
        ]
    }
}

/// Runs `kron` under a line of shell; exit code 1, and one sentence with the target and the reason.
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
    let toy = Toy::new();
    let before = names(toy.dir.path());
    for call in toy.calls(&toy.dir.path().join("out")) {
        refused("trap '' XFSZ; ulimit -f 32;", &call, &["/out", "File too large"]);
        assert_eq!(names(toy.dir.path()), before, "{call:?}");
    }
}

/// A disk of 64 kB, where the system lets us have one.
#[test]
fn a_full_disk() {
    let (toy, disk) = (Toy::new(), tempfile::tempdir().unwrap());
    let script = toy.dir.path().join("script");
    let lines = "mount -t tmpfs -o size=64k none \"$DISK\" || exit 77\n\"$@\"; code=$?\nls -A \"$DISK\"\nexit $code\n";
    std::fs::write(&script, lines).unwrap();
    for call in toy.calls(&disk.path().join("out")) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh"]).arg(&script).env("DISK", disk.path());
        let done = command.arg(assert_cmd::cargo::cargo_bin!("kron")).args(&call).output();
        let Some(done) = done.ok().filter(|done| done.stderr.starts_with(b"error: ")) else {
            eprintln!("skipped: a file system of our own cannot be mounted here");
            return;
        };
        let err = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), err.lines().count()), (Some(1), 1), "{call:?}: {err}");
        assert!(err.contains("/out") && err.contains("No space left"), "{call:?}: {err}");
        // The listing of the disk.
        assert_eq!(String::from_utf8_lossy(&done.stdout), "", "{call:?}");
    }
}

/// A file system that cannot be written, whoever asks, and a file where a folder should be.
#[test]
fn folders_that_nobody_may_write_to() {
    let toy = Toy::new();
    let before = names(toy.dir.path());
    for place in [Path::new("/proc/kron-out"), &toy.base.join("out"), &toy.dir.path().join("no/out")] {
        for call in toy.calls(place) {
            refused("", &call, &[&place.display().to_string()]);
            assert_eq!(names(toy.dir.path()), before, "{call:?}");
        }
    }
}

/// The report has no place to go: said, with exit code 1.
#[test]
fn a_standard_output_that_is_full() {
    let toy = Toy::new();
    for command in ["inspect", "quantise --bits 4", "plan llama-2-7b"] {
        let adapter = if command.starts_with("plan") { "" } else { "\"$1\"" };
        let script = format!("\"$0\" {command} {adapter} >/dev/full");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(assert_cmd::cargo::cargo_bin!("kron")).arg(&toy.adapter);
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
    assert_eq!(crate::toy::run(call).0, 0);
    assert_eq!(["adapter_config.json", "adapter_model.safetensors"].map(when), before);
}
