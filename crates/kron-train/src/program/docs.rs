//! `kron-train man DIR` and `kron-train completions SHELL`, generated from the command line's definition.

use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::{Error, Result};
use clap_complete::Shell;
use kron_adapter::io::write_atomic;
use kron_candle::IfExists;

/// Writes a page for the program and one for each command.
///
/// # Errors
/// A page cannot be written.
pub fn man(folder: &Path, mut program: clap::Command) -> Result<()> {
    program.build();
    let name = program.get_name().to_string();
    let commands = program.get_subcommands().filter(|c| c.get_name() != "help");
    let pages = commands.map(|c| (format!("{name}-{}", c.get_name()), c.clone()));
    let pages: Vec<_> = pages.chain([(name.clone(), program.clone())]).collect();
    for (name, command) in pages {
        let page = clap_mangen::Man::new(command).title(name.to_uppercase());
        let path = folder.join(format!("{name}.1"));
        write_atomic(&path, IfExists::Replace, |mut out| page.render(&mut out))?;
    }
    Ok(())
}

/// Prints the completions of a shell.
///
/// # Errors
/// The standard output cannot be written.
pub fn completions(shell: Shell, mut program: clap::Command) -> Result<()> {
    let name = program.get_name().to_string();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut text);
    match std::io::stdout().write_all(&text) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Invalid(format!("the standard output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}
