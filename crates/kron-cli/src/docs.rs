//! `kron man DIR` and `kron completions SHELL`, generated from the program's own arguments.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap_complete::Shell;
use kron_adapter::IfExists;
use kron_adapter::io::write_atomic;

use crate::error::exit_codes;
use crate::progress::WriteProgress;
use crate::{Error, Result, TextOrJson};

/// Write a man page for every command
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "Existing pages of the same names are replaced.\n\n",
    exit_codes!("written", "the folder does not exist"),
    "Example: kron man ~/.local/share/man/man1",
))]
pub struct Man {
    /// Existing folder for kron.1, kron-inspect.1 and so on
    dir: PathBuf,
}

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 printed; 1 the standard output cannot be written; 2 invalid arguments.\n\n\
Example: kron completions bash > ~/.local/share/bash-completion/completions/kron")]
pub struct Completions {
    /// Shell that reads the script
    shell: Shell,
}

/// Writes the pages and returns 0.
///
/// # Errors
/// `--json`, as there is nothing to report; a folder that cannot be written; a signal.
pub fn man(args: &Man, mut program: clap::Command, form: TextOrJson) -> Result<ExitCode> {
    no_json(form, "man writes pages")?;
    program.build();
    let name = program.get_name().to_string();
    let commands = program.get_subcommands().filter(|c| c.get_name() != "help");
    let pages = commands.map(|c| (format!("{name}-{}", c.get_name()), c.clone()));
    let pages: Vec<_> = pages.chain([(name.clone(), program.clone())]).collect();
    let progress = WriteProgress::new(pages.len() as u64)?;
    for (name, command) in pages {
        let page = clap_mangen::Man::new(command).title(name.to_uppercase());
        let path = args.dir.join(format!("{name}.1"));
        write_atomic(&path, IfExists::Replace, |mut to| page.render(&mut to))
            .map_err(|e| Error::data(e.to_string()))?;
        progress.advance(1)?;
    }
    progress.finish();
    Ok(ExitCode::SUCCESS)
}

/// Prints the completion script and returns 0.
///
/// # Errors
/// `--json`, as a shell reads no JSON; a standard output that cannot be written.
pub fn completions(args: &Completions, mut program: clap::Command, form: TextOrJson) -> Result<ExitCode> {
    no_json(form, "completions prints a shell's script")?;
    let name = program.get_name().to_string();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut text);
    match std::io::stdout().write_all(&text) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::data(format!("the standard output cannot be written: {e}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn no_json(form: TextOrJson, what: &str) -> Result<()> {
    match form {
        TextOrJson::Text => Ok(()),
        TextOrJson::Json => Err(Error::usage(format!("{what}, so it has no --json"))),
    }
}
