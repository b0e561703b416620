//! Programs stopped in the middle of a write, and the files that `convert` leaves then.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kron_adapter::{Adapter, IfExists, Layer, Scaling};
use kron_core::{KronShape, LayerDims, Split, Theta};
use tempfile::TempDir;

use crate::models::{names, run};

/// A program stopped by a signal, with part of its output written.
pub struct Stopped(Child);

impl Stopped {
    /// Starts what `command` makes until it is caught with between 1 MB and all
    /// but 8 MB of `total` bytes in a temporary file under `folder`.
    pub fn in_the_middle(folder: &Path, total: u64, command: impl Fn() -> Command) -> Self {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(300) {
            let mut command = command();
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut stopped = Self(child);
            while stopped.0.try_wait().unwrap().is_none() {
                if written(folder) > 1 << 20 {
                    stopped.signal("STOP");
                    // It may have written on until the signal came.
                    std::thread::sleep(Duration::from_millis(20));
                    if (1 << 20..total - (8 << 20)).contains(&written(folder)) {
                        return stopped;
                    }
                    stopped.signal("CONT");
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let out = stopped.0.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        panic!("nothing was caught in the middle of a write");
    }

    /// Sends a signal, which takes effect when the program continues.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Lets the program continue.
    pub fn go_on(self) -> Child {
        self.signal("CONT");
        self.0
    }

    /// Sends a signal, lets the program continue, and waits for its end.
    pub fn end(self, signal: &str) -> Output {
        self.signal(signal);
        self.signal("CONT");
        self.0.wait_with_output().unwrap()
    }
}

/// Returns the bytes in our temporary files and folders.
fn written(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| temporary(&entry.file_name().to_string_lossy()));
    ours.map(|entry| {
        let inside = entry.path().join("new/adapter_model.safetensors");
        let meta = inside.metadata().or_else(|_| entry.path().metadata());
        meta.map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 })
    })
    .sum()
}

fn temporary(name: &str) -> bool {
    name.starts_with(".kron-") && name.ends_with(".tmp")
}

/// An adapter with one full inner factor of 144 MB of zeros.
struct Large {
    dir: TempDir,
    adapter: PathBuf,
}

const SIDE: usize = 6000;
const TOTAL: u64 = (4 * SIDE * SIDE) as u64;

impl Large {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let adapter = dir.path().join("large.safetensors");
        let shape =
            KronShape::krona(LayerDims { d_out: SIDE, d_in: SIDE }, Split { a_out: 1, a_in: 1 }).unwrap();
        let theta = Theta::from_vec(shape, vec![0.0; shape.params()]).unwrap();
        let layer = Layer::new("q", Scaling::plain(1.0).unwrap(), theta).unwrap();
        Adapter::new(vec![layer]).unwrap().write(&adapter, IfExists::Refuse).unwrap();
        Self { dir, adapter }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn args(&self, to: &str) -> Vec<std::ffi::OsString> {
        let paths = [self.adapter.clone().into_os_string(), self.out().into_os_string()];
        ["convert", "--force", "--to", to].map(Into::into).into_iter().chain(paths).collect()
    }

    /// Stops a conversion in the middle; `old` writes the output that it replaces.
    fn convert(&self, to: &str, old: impl Fn(&Path)) -> Stopped {
        Stopped::in_the_middle(self.dir.path(), TOTAL, || {
            let _ = std::fs::remove_dir_all(self.out());
            let _ = std::fs::remove_file(self.out());
            old(&self.out());
            let mut convert = Command::new(assert_cmd::cargo::cargo_bin!("kron"));
            convert.args(self.args(to));
            convert
        })
    }

    fn leftovers(&self) -> usize {
        names(self.dir.path()).iter().filter(|name| temporary(name)).count()
    }
}

#[test]
fn a_conversion_is_whole_or_not_there_whatever_the_signal() {
    let large = Large::new();
    let before = std::fs::metadata(&large.adapter).unwrap().modified().unwrap();
    let nothing = |_: &Path| ();
    for to in ["kron", "peft-lokr"] {
        for signal in ["INT", "TERM", "KILL"] {
            let out = large.convert(to, nothing).end(signal);
            let err = String::from_utf8_lossy(&out.stderr);
            assert!(out.stdout.is_empty() && !large.out().exists(), "{to} {signal}: {err}");
            if signal == "KILL" {
                assert_eq!((out.status.code(), large.leftovers()), (None, 1), "{to}");
            } else {
                assert_eq!((out.status.code(), large.leftovers()), (Some(1), 0), "{to}");
                assert!(err.contains("interrupted by a signal") && err.lines().count() == 1, "{err}");
            }
        }
        // The next run removes what a killed one left, and is not disturbed by it.
        let (code, _, err) = run(large.args(to));
        assert_eq!((code, err.as_str(), large.leftovers()), (0, "", 0));
        let back = large.dir.path().join("back.safetensors");
        let (code, ..) = run(["convert".into(), "--force".into(), large.out(), back.clone()]);
        assert_eq!(code, 0);
        let [got, want] = [&back, &large.adapter].map(|path| Adapter::read(path).unwrap());
        let (got, want) = (&got.layers()[0], &want.layers()[0]);
        assert!(got.theta() == want.theta() && got.scaling().scale() == want.scaling().scale());
    }
    assert_eq!(std::fs::metadata(&large.adapter).unwrap().modified().unwrap(), before);
}

#[test]
fn what_is_replaced_stays_until_the_new_one_is_whole() {
    let large = Large::new();
    let file = |path: &Path| std::fs::write(path, "old").unwrap();
    let folder = |path: &Path| {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("adapter_config.json"), "old").unwrap();
    };
    for signal in ["INT", "KILL"] {
        large.convert("kron", file).end(signal);
        assert_eq!(std::fs::read(large.out()).unwrap(), b"old", "{signal}");
        large.convert("peft-lokr", folder).end(signal);
        assert_eq!(names(&large.out()), ["adapter_config.json"], "{signal}");
        assert_eq!(std::fs::read(large.out().join("adapter_config.json")).unwrap(), b"old", "{signal}");
    }
    assert_eq!(run(large.args("peft-lokr")).0, 0);
    assert_eq!(names(&large.out()), ["adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(large.leftovers(), 0);
}

#[test]
fn another_s_temporary_file_is_no_leftover() {
    let large = Large::new();
    let stopped = large.convert("kron", |_| ());
    let small = large.dir.path().join("small");
    let lokr = crate::golden::golden().join("model_llama/lokr");
    assert_eq!(run(["convert".into(), lokr, small.clone()]).0, 0);
    assert_eq!(large.leftovers(), 1, "the one that is being written");
    assert!(stopped.go_on().wait().unwrap().success());
    assert!(large.out().exists() && small.exists());
    assert_eq!(large.leftovers(), 0);
}
