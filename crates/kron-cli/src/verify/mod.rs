//! `kron verify DIR`: our kernels against a folder of golden cases.
//!
//! ```text
//! index.json ── Entry ──┐
//! *.safetensors ────────┴─ Case ─┬─ kernels  ours, on the instruction set under test
//!                                ├─ formulas  float64: the truth; float32: the plain computation
//!                                └─ stored    ref.* and what each framework wrote
//!                                      └──────── judge ── report
//! ```

mod base;
mod case;
mod formulas;
mod index;
mod judge;
mod kernels;
mod quantity;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use kron_core::{Cpu, Isa};

use crate::{Error, Output, Result, watch};

pub use case::{Case, W1};
pub use index::{Entry, Index};
pub use judge::{Errors, Row, Verdict, judge};
pub use quantity::{Outputs, Quantity};
pub use report::{CaseReport, Report};

/// Check our kernels against a folder of golden cases.
///
/// Runs forward, backward and merge on the stored tensors, and compares y, dx,
/// the adapter's own delta and dx_delta, the factors' gradients and the merged
/// rows with the stored float64 reference. The errors of the frameworks whose
/// results are stored, and of a plain float32 computation, stand beside.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "An error is out of bounds above 2× (gradients 3×) the largest of the dtype's rounding and\n",
    "the errors of the frameworks that agree with the reference to half the dtype's digits. It is\n",
    "measured in two norms, the root of the sum of squares, which is printed, and the largest\n",
    "element. The plain computation's error counts where no framework agrees, and where few\n",
    "numbers make an error a matter of luck.\n\n",
    "Exit codes: 0 all within bounds; 1 an error, or the reference itself, is out of bounds;\n",
    "2 the call or the folder is at fault: nothing is printed but one sentence.\n\n",
    "Example: kron verify tests/golden --isa portable --threads 1"
))]
pub struct Args {
    /// Folder with an index.json and the safetensors files that it names
    dir: PathBuf,
    /// Instruction set: portable, avx2, avx512 or avx512bf16 [default: the machine's best]
    #[arg(long)]
    isa: Option<Isa>,
    /// Threads, 1 to 1024 [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Verifies a folder, prints the report, and returns 1 when something is out of bounds.
///
/// # Errors
/// A folder that cannot be verified, as an error of usage: 1 is an answer here.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let report = verify(args).map_err(Error::into_usage)?;
    output.print(&report, Report::table)?;
    Ok(ExitCode::from(if report.ok { 0 } else { 1 }))
}

fn verify(args: &Args) -> Result<Report> {
    let cpu = match args.isa {
        None => Cpu::new(),
        Some(isa) => Cpu::with_isa(isa).map_err(|e| Error::usage(e.to_string()))?,
    };
    let threads = usize::from(args.threads.unwrap_or(0));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::usage(format!("{threads} threads cannot be started: {e}")))?;
    let index = Index::read(&args.dir)?;
    let bar = watch::items(index.cases.len(), "cases");
    let cases = index.cases.iter().map(|entry| {
        let case = Case::read(&args.dir, entry)?;
        let ours = pool.install(|| kernels::run(&cpu, &case))?;
        let report = CaseReport::new(&case, judge(&case, &ours));
        bar.inc(1);
        Ok(report)
    });
    let cases = cases.collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    Ok(Report::new(cpu.isa(), pool.current_num_threads(), cases))
}
