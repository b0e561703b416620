//! Records the compiler and the commit, for the report's meta data.

use std::path::Path;
use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    println!("cargo::rustc-env=KRON_BENCH_RUSTC={}", output(&rustc, &["--version"]));
    println!("cargo::rustc-env=KRON_BENCH_COMMIT={}", commit());
    println!("cargo::rerun-if-changed=build.rs");
    // The log of HEAD changes with every commit and checkout; it is absent outside a repository.
    let log = output("git", &["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
}

fn commit() -> String {
    output("git", &["rev-parse", "--short=12", "HEAD"])
}

/// A command's first line, or `unknown`.
fn output(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().ok().filter(|o| o.status.success());
    let text = out.and_then(|o| String::from_utf8(o.stdout).ok());
    text.as_deref().and_then(|t| t.lines().next()).unwrap_or("unknown").trim().to_string()
}
