//! The program `kron-train`: parses arguments, runs the library, prints results.

mod bench;
mod cli;
mod docs;
mod generate;
mod inference;
mod load;
mod print;
mod studies;
mod train;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use kron_adapter::text::printable;

use crate::error::{Error, Result};
use crate::ranks::sharers;
use crate::run::OutputFolder;
use cli::{Cli, Command};

/// Exit code of arguments that are refused.
const REFUSED: u8 = 2;
/// Exit code of a run that a signal stopped, after it saved.
const STOPPED: u8 = 130;

/// Runs the program with its arguments, of which the first is its own name; prints, and returns the exit code.
///
/// `--help` and `--version` end the process.
pub fn program(args: Vec<OsString>) -> ExitCode {
    let command = match Cli::try_parse_from(args) {
        Ok(cli) => cli.command,
        Err(refused) if refused.use_stderr() => {
            let _ = write!(std::io::stderr(), "{}", printable(&refused.to_string()));
            return ExitCode::from(REFUSED);
        }
        Err(help) => help.exit(),
    };
    // On a thread of the pool: from outside, every parallel loop of a step would wake one and wait for it.
    let run = || rayon::scope(|_| run_command(command));
    match kron_core::start_threads(sharers()).map_err(Error::from).and_then(|()| run()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", printable(&error.to_string()));
            if matches!(error, Error::Stopped(_)) { ExitCode::from(STOPPED) } else { ExitCode::FAILURE }
        }
    }
}

fn run_command(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Train { settings, out, resume, rank_timeout } => {
            let timeout = Duration::from_secs(rank_timeout);
            return train::train(*settings, OutputFolder { path: out, resume }, timeout);
        }
        Command::Compare { grid, out, runs, jobs } => {
            return studies::compare_methods(&grid, &out, runs, jobs);
        }
        Command::Sequential { grid: Some(grid), out, jobs, .. } => studies::run_chains(&grid, &out, jobs),
        Command::Sequential { settings, domains, out, .. } => studies::run_chain(*settings, &domains, &out),
        Command::Eval(inference) => inference::evaluate(&inference),
        Command::Predict(inference) => inference::predict(&inference),
        Command::Generate(options) => generate::generate(&options),
        Command::Bench(options) => bench::run(*options),
        Command::Demo { seed } => studies::run_demo(seed),
        Command::Man { dir } => docs::man(&dir, Cli::command()),
        Command::Completions { shell } => docs::completions(shell, Cli::command()),
    };
    done.map(|()| ExitCode::SUCCESS)
}
