//! The program `kron`: parses the arguments, runs one command, returns its exit code.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::{
    Error, TextOrJson, combine, convert, diff, docs, inspect, merge, plan, quantise, report, verify,
};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use kron_adapter::text::printable;

/// Plan, convert, compare and merge LoRA, LoKr, KronA and Kron-LoRA adapters: ΔW = s·A ⊗ (B·C)
#[derive(Parser)]
#[command(name = "kron", version, arg_required_else_help = true, after_help = crate::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of a table, and an error as one line of JSON
    #[arg(long, global = true, display_order = 100)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Combine(combine::Args),
    Completions(docs::Completions),
    Convert(convert::Args),
    Diff(diff::Args),
    Inspect(inspect::Args),
    Man(docs::Man),
    Merge(merge::Args),
    Plan(plan::Args),
    Quantise(quantise::Args),
    Verify(verify::Args),
}

/// Runs the program with its arguments, of which the first is its own name; prints, and returns the exit code.
///
/// `--help` and `--version` end the process.
pub fn program(args: Vec<OsString>) -> ExitCode {
    let json = args.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(arguments(args)) {
        Ok(cli) => cli,
        Err(error) => return refused(&error, json),
    };
    let form = if cli.json { TextOrJson::Json } else { TextOrJson::Text };
    if let Err(error) = kron_core::start_threads(1) {
        return report(&Error::from(error), form);
    }
    let done = match &cli.command {
        Command::Combine(args) => combine::run(args, form),
        Command::Completions(args) => docs::completions(args, Cli::command(), form),
        Command::Convert(args) => convert::run(args, form),
        Command::Diff(args) => diff::run(args, form),
        Command::Inspect(args) => inspect::run(args, form),
        Command::Man(args) => docs::man(args, Cli::command(), form),
        Command::Merge(args) => merge::run(args, form),
        Command::Plan(args) => plan::run(args, form),
        Command::Quantise(args) => quantise::run(args, form),
        Command::Verify(args) => verify::run(args, form),
    };
    done.unwrap_or_else(|error| report(&error, form))
}

/// Returns the arguments, in which `export --lora` becomes `convert --to=lora`, and
/// `export --help` the help of `convert`. A clap alias would let `export` without `--lora`
/// write another format.
fn arguments(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_option = |arg: &OsString| arg.as_encoded_bytes().starts_with(b"-");
    let command = args.iter().skip(1).position(|arg| !is_option(arg)).map(|at| at + 1);
    let Some(command) = command.filter(|&at| args[at] == "export") else { return args };
    let is_lora_or_help = |arg: &OsString| ["--lora", "--help", "-h"].iter().any(|option| arg == option);
    let mut options = args[command + 1..].iter_mut().take_while(|arg| *arg != "--");
    if let Some(option) = options.find(|arg| is_lora_or_help(arg)) {
        if option == "--lora" {
            *option = "--to=lora".into();
        }
        args[command] = "convert".into();
    }
    args
}

/// Prints clap's refusal or its help, the refusal as JSON where `--json` is given. A refusal repeats the
/// arguments, which may be names of files.
fn refused(error: &clap::Error, json: bool) -> ExitCode {
    let help = !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    // Parsing failed, so that only the raw arguments tell.
    if help {
        error.exit();
    }
    if !json {
        let _ = write!(std::io::stderr(), "{}", printable(&error.to_string()));
        return ExitCode::from(2);
    }
    // Clap adds advice after an empty line.
    let text = error.to_string();
    let words = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ");
    report(&Error::usage(words.trim_start_matches("error: ")), TextOrJson::Json)
}
