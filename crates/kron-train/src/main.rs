//! The program `kron-train`.
#![deny(unsafe_code)]

mod process;

use std::process::ExitCode;

/// Keeps blocks from step to step, which the system's allocator gives back and takes again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    process::keep_blocks();
    process::keep_one_pool();
    kron_train::program(std::env::args_os().collect())
}
