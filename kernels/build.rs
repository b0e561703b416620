//! Compiles the kernels: by nvcc into fatbins (feature `cuda`), by the C++
//! compiler for the host (feature `emulate`). Without either it does nothing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    #[cfg(feature = "emulate")]
    emulate();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() && std::env::var_os("DOCS_RS").is_none() {
        fatbins();
    } else if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        write("fatbins.rs", "&[]"); // docs.rs has no nvcc, so the driver's code is checked without kernels
    }
}

fn out_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

/// Files of `cuda/` that define kernels, longest to compile first.
const KERNELS: [&str; 10] = [
    "kernels/backward_simt.cu",
    "kernels/segments.cu",
    "kernels/forward_tensor_core.cu",
    "kernels/backward_small_m.cu",
    "kernels/forward_simt.cu",
    "kernels/backward_dx_tensor_core.cu",
    "kernels/backward_dy_tensor_core.cu",
    "kernels/merge.cu",
    "kernels/primitives.cu",
    "kernels/group.cu",
];

/// Files of `cuda/` that only the emulation has.
#[cfg(feature = "emulate")]
const EMULATOR: [&str; 3] = ["emulate/emulator.cpp", "emulate/fibers.cpp", "emulate/faults.cu"];

/// Compiles the .cu files as C++. Every object is linked, because kernels register themselves.
#[cfg(feature = "emulate")]
fn emulate() {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).define("KRON_EMULATE", None).flag("-x").flag("c++");
    build.flag("-Wall").flag("-Wextra").flag("-U_FORTIFY_SOURCE").link_lib_modifier("+whole-archive");
    // A libm call for each fused multiply-add would take a tenth of the emulation's time.
    // No other product and sum may be fused.
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        build.flag("-mfma").flag("-ffp-contract=off");
    }
    // Rust's own code is not instrumented, so only the tests link AddressSanitizer.
    let link =
        |arguments: &[&str]| arguments.iter().for_each(|a| println!("cargo::rustc-link-arg-tests={a}"));
    if cfg!(feature = "asan") {
        build.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=all");
        build.flag("-fsanitize-undefined-trap-on-error");
        link(&["-Wl,--push-state,--whole-archive,-l:libasan.a,--pop-state", "-lubsan", "-ldl", "-lm"]);
    }
    // ThreadSanitizer must be linked before the libraries whose functions it intercepts.
    // The emulator itself is not instrumented: it reports to ThreadSanitizer which fiber waits for which.
    if cfg!(feature = "tsan") {
        build.define("KRON_TSAN", None);
        println!("cargo::rustc-link-lib=dylib=tsan");
    }
    let compiler = build.get_compiler();
    let objects = compile(&[&KERNELS[..], &EMULATOR].concat(), "o", |name| {
        let mut command = compiler.to_command();
        if cfg!(feature = "tsan") && !name.ends_with(".cpp") {
            command.arg("-fsanitize=thread");
        }
        command.arg("-c");
        command
    });
    build.objects(objects).compile("kron_emulated");
}

/// Contents of a fatbin: machine code for six architectures, and PTX of compute_90,
/// which the driver of a newer GPU compiles. From sm_90 on every kernel waits for the
/// one before it, so newer code is not made from compute_80.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89]",
    "-gencode=arch=compute_90,code=[compute_90,sm_100,sm_120]",
    "-gencode=arch=compute_90a,code=sm_90a",
];

/// Refuses an nvcc that is too old for the newest of [`TARGETS`].
fn check_version(nvcc: &Path) {
    let printed = Command::new(nvcc).arg("--version").output().map(|run| run.stdout).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    let release = printed.split_once("release ").and_then(|(_, rest)| rest.split(',').next());
    let major = release.and_then(|release| release.split('.').next()?.parse::<u32>().ok());
    if let (Some(release), Some(..13)) = (release, major) {
        stop(&format!("{} is of CUDA {release}, but the kernels need 13.0 or later", nvcc.display()));
    }
}

/// Compiles the .cu files with nvcc and writes `fatbins.rs`, the array of their contents.
fn fatbins() {
    let nvcc = find_nvcc();
    check_version(&nvcc);
    compile(&KERNELS, "fatbin", |_| {
        let mut command = Command::new(&nvcc);
        command.args(["-std=c++17", "-O3", "-lineinfo", "--compress-mode=size", "-fatbin"]).args(TARGETS);
        command.args(["-Xptxas", "-warn-spills,-warn-lmem-usage"]);
        command
    });
    let included = KERNELS.map(|name| format!("&Aligned(*include_bytes!(\"{}.fatbin\"))", file_name(name)));
    write("fatbins.rs", &format!("&[{}]", included.join(", ")));
}

/// Compiles files of `cuda/`, `NUM_JOBS` at a time, and returns the outputs.
fn compile(names: &[&str], kind: &str, compiler: impl Fn(&str) -> Command) -> Vec<PathBuf> {
    let output = |name: &&str| out_dir().join(format!("{}.{kind}", file_name(name)));
    let queue =
        Mutex::new(names.iter().map(|name| (*name, compiler(name), output(name))).collect::<VecDeque<_>>());
    let next = || queue.lock().expect("no worker panics").pop_front();
    let work =
        || std::iter::from_fn(next).for_each(|(name, command, output)| compile_one(name, command, &output));
    let workers = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    names.iter().map(output).collect()
}

/// The last part of a path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// All headers in a folder and below.
fn headers(folder: &Path) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .partition(|path| path.is_dir());
    let header = |path: &PathBuf| path.extension().is_some_and(|e| e == "cuh" || e == "h");
    files.into_iter().filter(header).chain(folders.iter().flat_map(|folder| headers(folder))).collect()
}

/// Runs the compiler, unless its last run began after the last change of the source, a header or the compiler.
fn compile_one(name: &str, mut command: Command, output: &Path) {
    let source = Path::new("cuda").join(name);
    command.arg("-I").arg("cuda").arg(&source).arg("-o").arg(output);
    let changed = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let inputs = headers(Path::new("cuda")).into_iter().chain([source, command.get_program().into()]);
    let newest = inputs.filter_map(|path| changed(&path)).max();
    // A copy of the sources may share the output's folder.
    let how = format!("{} {command:?}", std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    // The command: written when the run begins, and renamed when it has succeeded.
    let (begun, done) = (output.with_added_extension("begun"), output.with_added_extension("command"));
    if changed(&done) > newest && std::fs::read_to_string(&done).is_ok_and(|last| last == how) {
        return;
    }
    let _ = std::fs::remove_file(&done);
    std::fs::write(&begun, how).expect("OUT_DIR is writable");
    match command.output() {
        Ok(run) if run.status.success() => {
            eprint!("{}", String::from_utf8_lossy(&run.stderr));
            std::fs::rename(begun, done).expect("OUT_DIR is writable");
        }
        Ok(run) => {
            eprint!("{}", String::from_utf8_lossy(&run.stderr));
            stop(&format!("{} did not compile {name}: {}", command.get_program().display(), run.status))
        }
        Err(error) => stop(&format!("{} cannot be run: {error}", command.get_program().display())),
    }
}

fn write(name: &str, text: &str) {
    std::fs::write(out_dir().join(name), text).expect("OUT_DIR is writable");
}

/// Finds nvcc by `NVCC`, a toolkit's variable, PATH, a virtual environment's wheels, or the usual folder.
fn find_nvcc() -> PathBuf {
    const TOOLKITS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
    for name in ["NVCC", "PATH", "VIRTUAL_ENV"].iter().chain(&TOOLKITS) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let program = format!("nvcc{}", std::env::consts::EXE_SUFFIX);
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(nvcc) = variable("NVCC") {
        return nvcc; // never skipped: if it does not work, the build fails
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

/// Ends the build with one message instead of a panic's trace.
fn stop(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1);
}
