//! A system that grants no thread is an error, not a panic.

use std::process::Command;

/// Limits the address space below the stack of one thread, so that the system refuses it.
#[cfg(target_os = "linux")]
#[test]
fn a_system_without_threads_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for (json, begin) in [("", "error: no threads"), ("--json", "{\"error\":\"no threads")] {
        let mut sh = Command::new("sh");
        let script = format!("ulimit -v 8000000; exec \"$0\" man {json} \"$1\"");
        sh.args(["-c", &script, env!("CARGO_BIN_EXE_kron")]).arg(folder.path());
        let ended = sh.env("RUST_MIN_STACK", "100000000000").output().unwrap();
        let message = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        assert!(message.starts_with(begin), "{message}");
    }
}
