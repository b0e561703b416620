//! The `kron` program: arguments in, one command run, an exit code out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use kron_cli::{
    Error, Output, code, convert, diff, docs, export, inspect, merge, plan, quantise, sentence, unmerge,
    verify,
};

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
    let cli = Cli::parse();
    let output = if cli.json { Output::Json } else { Output::Table };
    let done = match &cli.command {
        Command::Completions(args) => docs::completions(args, Cli::command()),
        Command::Convert(args) => convert::run(args, output),
        Command::Diff(args) => diff::run(args, output),
        Command::Export(args) => export::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
        Command::Man(args) => docs::man(args, Cli::command()),
        Command::Merge(args) => merge::run(args, output),
        Command::Plan(args) => plan::run(args, output),
        Command::Quantise(args) => quantise::run(args, output),
        Command::Unmerge(args) => unmerge::run(args),
        Command::Verify(args) => verify::run(args, output),
    };
    done.unwrap_or_else(|error: Error| {
        eprintln!("error: {}", sentence(&error));
        code(&error)
    })
}
