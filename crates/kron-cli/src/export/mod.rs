//! `kron export --lora IN OUT`: the lossless conversion to a PEFT LoRA folder.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::convert::{self, Side};
use crate::error::exit_codes;
use crate::{Output, Result};

/// Write an adapter as a LoRA that any engine serves.
///
/// ΔW = s·(A ⊗ B)·(I ⊗ C) is a LoRA of rank a_in·r, or a_out·r from the other
/// side: the smaller is written, as a PEFT folder. The same as
/// `kron convert --to lora`.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "Nothing is lost but one rounding of each product A·B to float32. Layers that differ in rank or\n",
    "scale get a rank_pattern and an alpha_pattern, which PEFT reads and some engines ignore: --uniform\n",
    "fills every layer up to the largest rank with zeros, and multiplies what differs in the scale\n",
    "into B, so that r and lora_alpha alone say all.\n\n",
    exit_codes!("written", "the adapter is at fault"),
    "Example: kron export --lora tests/golden/model_llama/lokr lora/",
))]
pub struct Args {
    /// As LoRA, the only form there is
    #[arg(long, required = true)]
    lora: bool,
    /// Adapter file or PEFT folder
    input: PathBuf,
    /// Folder to write
    output: PathBuf,
    /// Which LoRA to write [default: the one of smaller rank]
    #[arg(long, value_enum)]
    side: Option<Side>,
    /// One rank and one scale for all layers, for engines that know no patterns
    #[arg(long)]
    uniform: bool,
    /// Model, a safetensors file or a folder, whose names replace LyCORIS's
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Replace the folder when it exists and holds an adapter alone
    #[arg(long)]
    force: bool,
}

/// Exports, reports, and returns 0.
///
/// # Errors
/// As [`convert::run`].
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let args = convert::Args {
        input: args.input.clone(),
        output: args.output.clone(),
        to: convert::To::Lora,
        side: args.side,
        uniform: args.uniform,
        fit: false,
        a_in: None,
        a_out: None,
        rank: None,
        max_error: 0.0,
        base: args.base.clone(),
        force: args.force,
    };
    convert::run(&args, output)
}
