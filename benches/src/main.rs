//! The `kron-bench` program.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use indicatif::{ProgressBar, ProgressStyle};
use kron_adapter::text::printable;
use kron_bench::cli::Cli;
use kron_bench::record::{Record, Row};
use kron_bench::runner::Progress;
use kron_bench::schedule::Schedule;
use kron_bench::{baseline, device, host, html, table};

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
    let schedule = match cli.schedule() {
        Ok(schedule) => schedule,
        Err(sentence) => return refuse(&sentence),
    };
    let started = kron_core::start_threads(1).map_err(|e| e.to_string());
    match started.and_then(|()| run(&schedule)) {
        Ok(true) => ExitCode::SUCCESS,
        // The report names the engine that is wrong.
        Ok(false) => ExitCode::FAILURE,
        Err(sentence) => {
            eprintln!("error: {}", printable(&sentence));
            ExitCode::FAILURE
        }
    }
}

fn refuse(sentence: &str) -> ExitCode {
    eprintln!("error: {}", printable(sentence));
    ExitCode::from(REFUSED)
}

/// Runs the schedule, prints and writes the report, and returns true if all engines were right.
fn run(schedule: &Schedule) -> Result<bool, String> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| format!("{path}: {e}")
    };
    // Fails now rather than after two minutes of work.
    std::fs::create_dir_all(&schedule.out).map_err(at(&schedule.out))?;
    let mut terminal = Terminal { bar: ProgressBar::new(0), out: schedule.out.clone() };
    let record = match schedule.device {
        None => host::run(schedule, &mut terminal),
        Some(ordinal) => device::run(schedule, ordinal, &mut terminal),
    }?;
    terminal.bar.finish_and_clear();
    println!("{}", table::summary(&record));
    let against = schedule.baseline.as_ref().map(|old| baseline::report(old, &record));
    if let Some(text) = &against {
        println!("{text}");
    }
    record.write(&schedule.out).map_err(at(&schedule.out))?;
    let page = html::page(&record, against.as_deref()).map_err(|e| format!("index.html: {e}"))?;
    let file = schedule.out.join("index.html");
    std::fs::write(&file, page).map_err(at(&file))?;
    if let Some(file) = &schedule.markdown {
        std::fs::write(file, table::markdown(&record)).map_err(at(file))?;
    }
    println!("{}, bench.csv, bench.json", file.display());
    Ok(record.rows.iter().all(|r| r.ok))
}

/// A progress bar on standard error, tables on standard output.
struct Terminal {
    bar: ProgressBar,
    /// The folder of the record, which is written after every cell in case the run is stopped.
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

    fn so_far(&mut self, record: &Record) {
        if let Err(e) = record.write(&self.out) {
            // The run goes on: the last write may succeed, and fails the run if it does not.
            self.bar.suspend(|| eprintln!("{}: {e}", self.out.display()));
        }
    }
}
