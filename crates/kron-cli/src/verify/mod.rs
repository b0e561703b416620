//! `kron verify DIR`: compares our kernels with the results stored in a folder of golden cases.
//!
//! ```text
//! index.json ── Entry ──┐
//! *.safetensors ────────┴─ Case ─┬─ kernels   our results, on the chosen instruction set
//!                                ├─ formulas  float64: the reference; float32: the plain computation
//!                                └─ stored    ref.* and the results of each framework
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

use crate::{Error, Result, TextOrJson, progress};

pub use case::{Case, W1};
pub use index::{Entry, Index};
pub use judge::{Errors, Row, Verdict, judge};
pub use quantity::{Outputs, Quantity};
pub use report::{CaseReport, Report};

/// Check our kernels against a folder of golden cases.
///
/// Runs forward, backward and merge on the stored tensors. Compares y, dx, the adapter's share of both
/// (delta, dx_delta), the factors' gradients and the merged rows with the stored float64 reference. The
/// table also lists the errors of the frameworks whose results are stored, and of a plain float32
/// computation.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "The bound of an error is 2× (gradients 3×) the largest of the dtype's rounding and the errors of\n",
    "those frameworks that agree with the reference to half the dtype's digits. It is checked in two\n",
    "norms: the root of the sum of squares, which is printed, and the largest element. The plain\n",
    "computation's error counts too where no framework agrees, and for tensors so small that an error\n",
    "depends on chance.\n\n",
    "Exit codes: 0 all within bounds; 1 an error, or the reference itself, is out of bounds;\n",
    "2 invalid arguments or an invalid folder: only one sentence is printed.\n\n",
    "Example: kron verify tests/golden --isa portable --threads 1"
))]
pub struct Args {
    /// Folder with an index.json and the safetensors files that it lists
    dir: PathBuf,
    /// Instruction set: portable, avx2, avx512 or avx512bf16 [default: the machine's best]
    #[arg(long)]
    isa: Option<Isa>,
    /// Threads, 1 to 1024 [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Verifies a folder, prints the report, and returns 1 when an error is out of bounds.
///
/// # Errors
/// The folder cannot be verified: a usage error, as exit code 1 means out of bounds here.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    let report = verify(args).map_err(Error::into_usage)?;
    form.print(&report, Report::table)?;
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
    let bar = progress::items(index.cases.len(), "cases");
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
