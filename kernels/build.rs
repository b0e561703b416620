//! Compiles the kernels: by nvcc into one fatbin (feature `cuda`), by the C++
//! compiler for the host (feature `emulate`). Without either it does nothing.

use std::path::PathBuf;
use std::process::Command;

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
    const SOURCES: [&str; 9] = [
        "emulate.cpp",
        "forward.cu",
        "forward_mma.cu",
        "backward.cu",
        "backward_dy_mma.cu",
        "backward_dx_mma.cu",
        "merge.cu",
        "primitives.cu",
        "emulate_faults.cu",
    ];
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).define("KRON_EMULATE", None).flag("-x").flag("c++");
    build.flag("-Wall").flag("-Wextra").flag("-U_FORTIFY_SOURCE").link_lib_modifier("+whole-archive");
    build.files(SOURCES.map(|name| format!("cuda/{name}")));
    if cfg!(feature = "asan") {
        build.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=all");
        build.flag("-fsanitize-undefined-trap-on-error");
    }
    if cfg!(feature = "tsan") {
        build.flag("-fsanitize=thread");
    }
    build.compile("kron_emulated");
}

/// What the fatbin holds machine code for; PTX of the oldest serves the rest.
const ARCHS: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

/// Compiles `cuda/kron.cu` with nvcc.
fn fatbin() {
    let nvcc = find_nvcc();
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-lineinfo", "--threads", "0", "--compress-mode=size", "-fatbin"]);
    command.args(["-Xptxas", "-warn-spills,-warn-lmem-usage"]);
    for arch in ARCHS {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg(format!("-gencode=arch=compute_{0},code=compute_{0}", ARCHS[0]));
    command.arg("cuda/kron.cu").arg("-o").arg(out_dir().join("kron.fatbin"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => stop(&format!("{} did not compile the kernels: {status}", nvcc.display())),
        Err(error) => stop(&format!("{} cannot be run: {error}", nvcc.display())),
    }
}

/// nvcc by `NVCC`, a toolkit's variable, PATH, a virtual environment's wheels, or the usual folder.
fn find_nvcc() -> PathBuf {
    const TOOLKITS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
    for name in ["NVCC", "PATH", "VIRTUAL_ENV"].iter().chain(&TOOLKITS) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let program = format!("nvcc{}", std::env::consts::EXE_SUFFIX);
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(nvcc) = variable("NVCC") {
        return nvcc; // used or failed with, never passed over
    }
    let toolkits = TOOLKITS.iter().filter_map(|name| variable(name)).map(|home| home.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).collect::<Vec<_>>();
    let wheels = variable("VIRTUAL_ENV").into_iter().flat_map(|env| {
        let pythons = std::fs::read_dir(env.join("lib")).into_iter().flatten().flatten();
        pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin")).collect::<Vec<_>>()
    });
    let usual = [PathBuf::from("/usr/local/cuda/bin")];
    let found =
        toolkits.chain(path).chain(wheels).chain(usual).map(|bin| bin.join(&program)).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        stop(
            "the feature `cuda` needs nvcc: set NVCC to it, set CUDA_HOME to a toolkit (13.0 or later), \
             or run `eval \"$(scripts/cuda-toolkit.sh)\"`, which installs one from PyPI",
        )
    })
}

/// Ends the build with one sentence instead of a panic's trace.
fn stop(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1);
}
