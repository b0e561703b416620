//! `src/params.rs` equals bindgen's output for `cuda/params.h`.
//!
//! To regenerate it: `KRON_WRITE_PARAMS=1 cargo test -p kron-kernels --test params`.

#[path = "../../tests/src/notice.rs"]
mod notice;

use std::path::Path;

const HEADER: &str = "//! The Rust twin of `cuda/params.h`, written by bindgen: see `tests/params.rs`.
#![allow(missing_docs, clippy::undocumented_unsafe_blocks)]
";

fn libclang_is_here() -> bool {
    std::panic::catch_unwind(|| bindgen::clang_version().full).is_ok()
}

#[test]
fn params_rs_is_up_to_date() {
    if !libclang_is_here() {
        notice::notice("skipped: libclang is absent, so src/params.rs was not compared (set LIBCLANG_PATH)");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let generated = bindgen::Builder::default()
        .header(folder.join("cuda/params.h").to_string_lossy())
        .allowlist_type("KronParams")
        .derive_default(true)
        .derive_partialeq(true)
        .generate_comments(false)
        .layout_tests(true)
        .disable_header_comment()
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("params.h is plain C");
    let generated = format!("{HEADER}{generated}");
    let file = folder.join("src/params.rs");
    if std::env::var_os("KRON_WRITE_PARAMS").is_some() {
        std::fs::write(&file, &generated).expect("src is writable");
    }
    let checked_in = std::fs::read_to_string(&file).expect("src/params.rs is checked in");
    assert!(checked_in == generated, "src/params.rs differs from bindgen's output for cuda/params.h");
}
