//! `kron inspect PATH`: an adapter's format, layers, scales, norms and ranks; or what else a file holds.
//!
//! Norm, effective rank and spectrum of ΔW are computed from the factors; ΔW is never built.

mod diagnosis;
mod html;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use kron_adapter::{Kind, Output};

use crate::choice::Choice;
use crate::error::exit_codes;
use crate::overwriting::check_not_overwriting_files;
use crate::{Result, TextOrJson, progress};

pub use diagnosis::Diagnosis;
pub use report::Report;

/// Show an adapter's format, layers, scales, norms and ranks.
///
/// Reads files of this project, PEFT folders (LoRA, rsLoRA, LoKr), LyCORIS files (LoKr, LoRA), and LoRAs of Kohya's
/// trainers and of diffusers.
/// The norm and the effective rank of each layer's ΔW are computed from the factors. Tensors trained beside
/// the factors, such as a classification head, have a table of their own.
///
/// Of a safetensors file that is read as no adapter, such as a model, it shows what the tensors are, which commands
/// refuse it, and why.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "A is the outer factor, a_out × a_in; of a sum, the number of terms and the first one's. ‖ΔW‖ is the\n",
    "root of the sum of squares. The effective rank is exp of the entropy of σ / Σσ over the singular\n",
    "values σ (Roy and Vetterli 2007); the number after \"of\" is the largest rank that the shape allows.\n",
    "Singular values take at most 768 multiply-adds for each byte of the file, or 2^29 for a small one,\n",
    "and 64 bytes of memory, or 32 MiB; a layer beyond that has a note instead.\n\n",
    exit_codes!("shown", "the file is damaged or no safetensors file"),
    "Examples:\n",
    "  kron inspect adapter.safetensors\n",
    "  kron inspect peft-lokr/ --html spectrum.html",
))]
pub struct Args {
    /// Adapter file or PEFT folder; or another safetensors file or a model's folder
    path: PathBuf,
    #[command(flatten)]
    choice: Choice,
    /// Also write an HTML page with the spectrum of every layer
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Replace the page when it exists
    #[arg(long, requires = "html")]
    force: bool,
}

/// Reads, reports, and returns 0.
///
/// # Errors
/// The adapter cannot be read, or the page cannot be written.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    args.html.iter().try_for_each(|page| check_not_overwriting_files(&args.path, page))?;
    let loaded = match args.choice.read(&args.path) {
        Ok(loaded) => loaded,
        Err(error) if error.kind() == Kind::Data && args.html.is_none() => {
            let diagnosis = Diagnosis::of(&args.path, &args.choice.options(), error)?;
            form.print(&diagnosis, Diagnosis::table)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    let report = Report::new(loaded)?;
    if let Some(path) = &args.html {
        progress::write_output(path, &Output::File(html::page(&report)?.into_bytes()), args.force)?;
    }
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}
