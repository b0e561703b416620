//! A C program and a Python script use the shared library through `kron.h`.
#![cfg(target_os = "linux")]

#[path = "../../../tests/src/notice.rs"]
mod notice;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The host, and the device path on the kernels' emulation, which a release build does not have.
const PLACES: &[&str] = if cfg!(debug_assertions) { &["host", "-1"] } else { &["host"] };

/// The folder of the shared library, which Cargo builds beside the tests.
fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.parent().expect("a file is in a folder").to_path_buf()
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn agrees(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"agrees\n", "{command:?}: {said}");
}

/// Compiles a C program against `kron.h` and the shared library.
fn compiled(source: &Path, scratch: &Path) -> PathBuf {
    let program = scratch.join(source.file_stem().expect("a file has a name"));
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut cc = Command::new(compiler);
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-I"]).arg(env!("CARGO_MANIFEST_DIR"));
    cc.arg(source).arg("-o").arg(&program).arg("-L").arg(folder()).args(["-lkron_capi", "-lm", "-pthread"]);
    let compiled = cc.output().expect("a C compiler: the emulated kernels need one too");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

/// A script on the shared library; `None` with a notice where there is no python3.
fn python(script: &str) -> Option<Command> {
    if let Err(e) = Command::new("python3").arg("--version").output() {
        notice::notice(format_args!("skipped: python3 does not run: {e}"));
        return None;
    }
    let mut python = Command::new("python3");
    // No compiled modules beside the scripts.
    python.arg("-B").arg(source(script)).arg(folder().join("libkron_capi.so"));
    Some(python)
}

#[test]
fn a_c_program_agrees_with_its_own_loops() {
    let scratch = tempfile::tempdir().expect("a folder");
    let program = compiled(&source("check.c"), scratch.path());
    for place in PLACES {
        agrees(Command::new(&program).arg(place).env("LD_LIBRARY_PATH", folder()));
    }
}

#[test]
fn calls_over_many_adapters_agree_with_single_calls() {
    let scratch = tempfile::tempdir().expect("a folder");
    let program = compiled(&source("many.c"), scratch.path());
    agrees(Command::new(&program).env("LD_LIBRARY_PATH", folder()));
}

/// A hundred and twenty processes and more on the host, which has a pool of threads; the emulation has none.
#[test]
fn forked_processes_give_the_bits_of_their_parent() {
    let scratch = tempfile::tempdir().expect("a folder");
    let program = compiled(&source("fork.c"), scratch.path());
    for (place, size) in PLACES.iter().zip([["120", "512"], ["3", "20"]]) {
        agrees(Command::new(&program).arg(place).args(size).env("LD_LIBRARY_PATH", folder()));
    }
}

#[test]
fn workers_of_multiprocessing_give_the_bits_of_their_parent() {
    let Some(mut python) = python("fork.py") else { return };
    agrees(&mut python);
}

#[test]
fn the_c_example_prints_what_its_comments_compute() {
    let scratch = tempfile::tempdir().expect("a folder");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/forward.c");
    let mut program = Command::new(compiled(&example, scratch.path()));
    let output = program.env("LD_LIBRARY_PATH", folder()).output().expect("the example runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "y[0] = 18\ndA[0] = 32\n");
}

#[test]
fn a_python_script_agrees_with_its_own_loops() {
    for place in PLACES {
        let Some(mut python) = python("check.py") else { return };
        agrees(python.arg(place));
    }
}

#[test]
fn the_header_is_cplusplus_too() {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut cxx = Command::new(compiler);
    cxx.args(["-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"]);
    let compiled = cxx.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kron.h")).output();
    let compiled = compiled.expect("a C++ compiler: the emulated kernels need one too");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}
