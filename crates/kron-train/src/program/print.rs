//! Output of the program, on both streams.

use std::io::{ErrorKind, Write};
use std::path::Path;

use kron_adapter::text::{one_line, printable};

use crate::error::{Error, Result};
use crate::inference::write_new;
use crate::run::Stop;

/// Prints a line on the standard output; a name from a file, whatever is in it, does not end the line.
macro_rules! say {
    ($($line:tt)*) => { $crate::program::print::print(&kron_adapter::text::one_line(&format!($($line)*))) };
}
pub(crate) use say;

/// Prints lines on the standard output. A closed pipe is not an error, and a text from a file gives
/// a terminal no command.
pub fn print(text: &str) {
    // Results are in the output folder too, so that a full disk behind the output loses nothing.
    let _ = writeln!(std::io::stdout().lock(), "{}", printable(text.trim_end()));
}

/// Prints a line on the standard error, beside a result on the standard output.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", one_line(text));
}

/// Writes a result to a new file, or prints it. A closed pipe is not an error.
pub fn put(out: Option<&Path>, parts: impl Iterator<Item = Result<String>>) -> Result<()> {
    let stop = Stop::on_signals()?;
    let stopped = || Error::Stopped("a signal came before the last result; no file is written".into());
    let parts = parts.map(|part| if stop.is_requested() { Err(stopped()) } else { part });
    let Some(path) = out else {
        let mut stdout = std::io::stdout().lock();
        for part in parts {
            match stdout.write_all(part?.as_bytes()).and_then(|()| stdout.flush()) {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written
                    .map_err(|e| Error::Invalid(format!("the standard output cannot be written: {e}")))?,
            }
        }
        return Ok(());
    };
    write_new(path, parts)
}
