//! The `kron` program: arguments in, one command run, an exit code out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kron_cli::{Error, Output, merge, plan, unmerge, verify};

/// Kron-LoRA adapters: ΔW = s·A ⊗ (B·C).
#[derive(Parser)]
#[command(name = "kron", version, arg_required_else_help = true, after_help = kron_cli::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of a table.
    #[arg(long, global = true, display_order = 100)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Merge(merge::Args),
    Plan(plan::Args),
    Unmerge(unmerge::Args),
    Verify(verify::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = if cli.json { Output::Json } else { Output::Table };
    let done = match &cli.command {
        Command::Merge(args) => merge::run(args, output),
        Command::Plan(args) => plan::run(args, output),
        Command::Unmerge(args) => unmerge::run(args),
        Command::Verify(args) => verify::run(args, output),
    };
    done.unwrap_or_else(|error: Error| {
        eprintln!("error: {error}");
        error.code()
    })
}
