//! The `kron-bench` program.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use indicatif::{ProgressBar, ProgressStyle};
use kron_bench::cli::Cli;
use kron_bench::plan::Plan;
use kron_bench::record::{Record, Row};
use kron_bench::runner::{self, Progress};
use kron_bench::{baseline, device, html, table};

/// Exit code of refused input.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => e.exit(),
        Err(e) => {
            return refuse(e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: "));
        }
    };
    let plan = match cli.plan() {
        Ok(plan) => plan,
        Err(sentence) => return refuse(&sentence),
    };
    match run(&plan) {
        Ok(true) => ExitCode::SUCCESS,
        // The report says which engine is wrong.
        Ok(false) => ExitCode::FAILURE,
        Err(sentence) => {
            eprintln!("error: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("error: {sentence}");
    ExitCode::from(REFUSED)
}

/// Runs, prints and writes everything; whether all engines were right.
fn run(plan: &Plan) -> Result<bool, String> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| format!("{path}: {e}")
    };
    // Before two minutes of work, not after.
    std::fs::create_dir_all(&plan.out).map_err(at(&plan.out))?;
    let mut terminal = Terminal { bar: ProgressBar::new(0), out: plan.out.clone() };
    let record = match plan.device {
        None => runner::run(plan, &mut terminal),
        Some(ordinal) => device::run(plan, ordinal, &mut terminal),
    }?;
    terminal.bar.finish_and_clear();
    println!("{}", table::summary(&record));
    let against = plan.baseline.as_ref().map(|old| baseline::report(old, &record));
    if let Some(text) = &against {
        println!("{text}");
    }
    record.write(&plan.out).map_err(at(&plan.out))?;
    let page = html::page(&record, against.as_deref()).map_err(|e| format!("index.html: {e}"))?;
    let file = plan.out.join("index.html");
    std::fs::write(&file, page).map_err(at(&file))?;
    if let Some(file) = &plan.markdown {
        std::fs::write(file, table::markdown(&record)).map_err(at(file))?;
    }
    println!("{}, bench.csv, bench.json", file.display());
    Ok(record.rows.iter().all(|r| r.ok))
}

/// A bar on standard error, tables on standard output.
struct Terminal {
    bar: ProgressBar,
    /// Where the record of what is measured so far is kept, for a run that is stopped.
    out: PathBuf,
}

impl Progress for Terminal {
    fn start(&mut self, total: usize) {
        self.bar.set_length(total as u64);
        // The template is a constant, and correct.
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {msg}");
        self.bar.set_style(style.expect("a valid template"));
        self.bar.set_message("measuring the roof");
    }

    fn step(&mut self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    fn refused(&mut self, why: String) {
        self.bar.suspend(|| eprintln!("refused: {why}"));
    }

    fn cell(&mut self, rows: &[Row]) {
        self.bar.suspend(|| println!("{}", table::cell(rows)));
    }

    fn layer(&mut self, record: &Record) {
        if let Err(e) = record.write(&self.out) {
            // The run goes on: the last write may succeed, and says so if it does not.
            self.bar.suspend(|| eprintln!("{}: {e}", self.out.display()));
        }
    }
}
