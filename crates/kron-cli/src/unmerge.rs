//! `kron unmerge`: refused, with the reason.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::{Error, Result};

/// Not possible: keep the original model instead.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "Merging rounds every weight once, and that rounding cannot be undone: subtracting ΔW again\n",
    "gives other weights than the original, in bf16 visibly so.\n\nExit codes: 2, always.\n\n",
    "Example: kron merge base adapter.safetensors merged    # base stays as it is"
))]
pub struct Args {
    /// Ignored
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn run(_: &Args) -> Result<ExitCode> {
    Err(Error::usage(
        "a merge cannot be undone: it rounded every weight to the model's dtype, so subtracting ΔW does not \
         give the original back; keep the original model, which kron merge never changes",
    ))
}
