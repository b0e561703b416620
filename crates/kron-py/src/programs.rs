//! The programs `kron` and `kron-train`.

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

/// Keeps blocks from step to step, which the system's allocator gives back and takes again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs `kron` with these arguments, of which the first is its own name; returns the exit code.
#[pyfunction]
pub fn kron(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| code(::kron_cli::program(args)))
}

/// Runs `kron-train`, as [`kron`] does.
#[pyfunction]
pub fn kron_train(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| code(::kron_train::program(args)))
}

fn code(code: ExitCode) -> u8 {
    (0..=u8::MAX).find(|&number| ExitCode::from(number) == code).unwrap_or(1)
}
