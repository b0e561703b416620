//! The `kron` program: arguments in, one command run, an exit code out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use kron_cli::{
    Error, Output, convert, diff, docs, export, inspect, merge, plan, quantise, report, unmerge, verify,
};

/// Kron-LoRA adapters: ΔW = s·A ⊗ (B·C).
#[derive(Parser)]
#[command(name = "kron", version, arg_required_else_help = true, after_help = kron_cli::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of a table, and an error as one line of it.
    #[arg(long, global = true, display_order = 100)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Completions(docs::Completions),
    Convert(convert::Args),
    Diff(diff::Args),
    Export(export::Args),
    Inspect(inspect::Args),
    Man(docs::Man),
    Merge(merge::Args),
    Plan(plan::Args),
    Quantise(quantise::Args),
    Unmerge(unmerge::Args),
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let output = if cli.json { Output::Json } else { Output::Table };
    let done = match &cli.command {
        Command::Completions(args) => docs::completions(args, Cli::command(), output),
        Command::Convert(args) => convert::run(args, output),
        Command::Diff(args) => diff::run(args, output),
        Command::Export(args) => export::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::Man(args) => docs::man(args, Cli::command(), output),
        Command::Merge(args) => merge::run(args, output),
        Command::Plan(args) => plan::run(args, output),
        Command::Quantise(args) => quantise::run(args, output),
        Command::Unmerge(args) => unmerge::run(args),
        Command::Verify(args) => verify::run(args, output),
    };
    done.unwrap_or_else(|error| report(&error, output))
}

/// A call that clap refuses, or answers by the help, in clap's words.
fn refused(error: &clap::Error) -> ExitCode {
    let help = !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    // There are no arguments yet that could say so.
    if help || !std::env::args_os().any(|arg| arg == "--json") {
        error.exit();
    }
    // What follows the first empty line is advice to a reader.
    let text = error.to_string();
    let words = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
    report(&Error::usage(words.trim_start_matches("error: ")), Output::Json)
}
