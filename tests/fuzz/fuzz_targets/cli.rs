//! Any bytes as files of others, which the program reads: an error or an answer, never a panic.
#![no_main]

use std::sync::LazyLock;

use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a temporary folder"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kron_tests::foreign::read_any(FOLDER.path(), bytes);
});
