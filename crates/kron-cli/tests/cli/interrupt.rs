//! `kron merge` interrupted and resumed, and its memory.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::File;
use crate::models::{adapter, assert_merge_fails, merge, names, sharded, tensor};
use crate::stopped::Stopped;

/// Rows and columns of the large bf16 weight: 200 MB.
const LARGE: usize = 10_000;
const JOURNAL: &str = ".kron-merge.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A small first shard, and a second one with a large weight of zeros in a sparse file.
struct Model {
    dir: TempDir,
    base: PathBuf,
    adapter: PathBuf,
}

impl Model {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let small = |name: &str| File::from([(name.to_string(), tensor(Dtype::F32, &[6, 10], 1))]);
        let base = sharded(dir.path(), &[small("a.weight"), small("z.weight")], json!({}));
        let bytes = 2 * LARGE * LARGE;
        let header =
            json!({ "z.weight": { "dtype": "BF16", "shape": [LARGE, LARGE], "data_offsets": [0, bytes] } });
        let header = header.to_string();
        let mut start = (header.len() as u64).to_le_bytes().to_vec();
        start.extend(header.as_bytes());
        std::fs::write(base.join(SHARDS[1]), &start).unwrap();
        let file = std::fs::File::options().write(true).open(base.join(SHARDS[1])).unwrap();
        file.set_len((start.len() + bytes) as u64).unwrap();
        let shapes = [
            ("a", KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1)),
            ("z", KronShape::lora(LayerDims { d_out: LARGE, d_in: LARGE }, 1)),
        ];
        let (adapter, _) = adapter(dir.path(), &shapes.map(|(module, shape)| (module, shape.unwrap())));
        Self { dir, base, adapter }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Starts a merge and stops it while it writes the second shard.
    fn start(&self) -> Stopped {
        let total = (2 * LARGE * LARGE) as u64;
        Stopped::in_the_middle(&self.out(), total, || {
            let _ = std::fs::remove_dir_all(self.out());
            let mut merge = Command::new(assert_cmd::cargo::cargo_bin!("kron"));
            merge.arg("merge").args([&self.base, &self.adapter, &self.out()]);
            merge
        })
    }

    fn resume(&self) -> Value {
        let (code, out, err) = merge(&self.base, &self.adapter, &self.out(), &["--resume", "--json"]);
        assert_eq!((code, err.as_str()), (0, ""));
        serde_json::from_str(&out).unwrap()
    }

    /// Asserts that the folder equals that of an undisturbed merge.
    fn assert_whole(&self) {
        let other = self.dir.path().join("undisturbed");
        assert_eq!(merge(&self.base, &self.adapter, &other, &[]).0, 0);
        assert_eq!(names(&self.out()), names(&other));
        for name in names(&other) {
            // Not assert_eq, which would print 200 MB.
            let same =
                std::fs::read(self.out().join(&name)).unwrap() == std::fs::read(other.join(&name)).unwrap();
            assert!(same, "{name} differs");
        }
    }
}

#[test]
fn killed_merge_leaves_no_half_and_is_taken_up_again() {
    let model = Model::new();
    assert_eq!(model.start().end("KILL").status.code(), None);
    let left = names(&model.out());
    assert!(left.iter().any(|name| name == SHARDS[0]), "{left:?}");
    for absent in [SHARDS[1], "model.safetensors.index.json"] {
        assert!(!left.iter().any(|name| name == absent), "{left:?}");
    }

    // Without a word, or with another adapter, it is not taken up.
    let merged = merge(&model.base, &model.adapter, &model.out(), &[]);
    assert_merge_fails(merged, 2, &["unfinished merge", "--resume"]);
    let other = tempfile::tempdir().unwrap();
    let (stranger, _) =
        adapter(other.path(), &[("a", KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 1).unwrap())]);
    let merged = merge(&model.base, &stranger, &model.out(), &["--resume"]);
    assert_merge_fails(merged, 2, &[JOURNAL, "another merge"]);

    let report = model.resume();
    assert_eq!((&report["kept"], &report["shards"]), (&json!(1), &json!(2)));
    model.assert_whole();
}

#[test]
fn kept_shard_is_known_by_its_hash() {
    let model = Model::new();
    model.start().end("KILL");
    let path = model.out().join(SHARDS[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(model.resume()["kept"], 0);
    model.assert_whole();
}

#[test]
fn interrupt_is_an_orderly_end() {
    let model = Model::new();
    let before = std::fs::read(model.base.join(SHARDS[0])).unwrap();
    for signal in ["INT", "TERM"] {
        let out = model.start().end(signal);
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{err}");
        assert!(err.contains("interrupted by a signal") && err.lines().count() == 1, "{err}");
        assert_eq!(names(&model.out()), [JOURNAL, SHARDS[0]]);
        assert_eq!(std::fs::read(model.base.join(SHARDS[0])).unwrap(), before, "the source is untouched");
    }
    assert_eq!(model.resume()["kept"], 1);
}

/// Exit code 130: a second signal does not wait for the orderly end.
#[test]
fn second_signal_ends_it_at_once() {
    let model = Model::new();
    // Two threads may take the signals at the same moment, and then neither is the second.
    let out = (0..20)
        .map(|_| {
            let merge = model.start();
            merge.signal("INT");
            merge.end("TERM")
        })
        .find(|out| out.status.code() != Some(1))
        .expect("a second signal");
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), out.stdout.as_slice(), &err[..]), (Some(130), &b""[..], ""));
    let left = names(&model.out());
    assert!(
        !left.iter().any(|name| [SHARDS[1], "model.safetensors.index.json"].contains(&&name[..])),
        "{left:?}"
    );
    assert_eq!(model.resume()["kept"], 1);
    model.assert_whole();
}

/// A stopped merge keeps its folder, whatever others ask for, and ends whole.
#[test]
fn paused_merge_stays_the_only_writer() {
    let model = Model::new();
    let paused = model.start();
    let left = names(&model.out());
    let other = tempfile::tempdir().unwrap();
    let (stranger, _) =
        adapter(other.path(), &[("a", KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 1).unwrap())]);
    for flags in [&["--force"][..], &["--resume"], &[]] {
        for adapter in [&model.adapter, &stranger] {
            let merged = merge(&model.base, adapter, &model.out(), flags);
            assert_merge_fails(merged, 2, &["is being written by kron (process "]);
            assert_eq!(names(&model.out()), left);
        }
    }
    assert!(paused.go_on().wait_with_output().unwrap().status.success());
    model.assert_whole();
}

#[test]
fn model_that_shrinks_is_an_error() {
    let model = Model::new();
    let shard = std::fs::File::options().write(true).open(model.base.join(SHARDS[1])).unwrap();
    let len = shard.metadata().unwrap().len();
    // It may have copied all before it was stopped.
    let out = loop {
        shard.set_len(len).unwrap();
        let merge = model.start();
        shard.set_len(5000).unwrap();
        let out = merge.end("CONT");
        if !out.status.success() {
            break out;
        }
    };
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{err}");
    assert!(err.contains("cut short") && err.lines().count() == 1, "{err}");
    assert!(!model.out().join(SHARDS[1]).exists());
}

/// Sends the signal of a page that the disk cannot read.
#[test]
fn bus_error_is_a_sentence() {
    let model = Model::new();
    let out = model.start().end("BUS");
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b""[..]), "{err}");
    assert!(err.contains("cut short or its disk failed") && err.lines().count() == 1, "{err}");
    assert!(!model.out().join(SHARDS[1]).exists());
    assert_eq!(model.resume()["kept"], 1);
}

/// Merges a tensor of 200 MB in less memory than that tensor.
#[test]
fn memory_is_a_band_of_rows() {
    let model = Model::new();
    let mut child = model.start().go_on();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = BTreeMap::new();
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kilobytes) = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()) {
            peak.insert("VmHWM", 1024 * kilobytes);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let (peak, tensor) = (peak["VmHWM"], (2 * LARGE * LARGE) as u64);
    assert!((1 << 20..tensor / 2).contains(&peak), "{peak} bytes for a tensor of {tensor}");
}
