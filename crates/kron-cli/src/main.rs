//! The `kron` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kron_cli::program(std::env::args_os().collect())
}
