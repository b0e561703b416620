//! Progress of long work: a bar on the standard error, and an orderly stop on a signal.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kron_adapter::IfExists;
use kron_adapter::Output;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{Error, Result};

const BYTES: &str = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const ITEMS: &str = "{bar:40} {pos}/{len} {msg} {eta}";

/// A bar that is drawn only when the standard error is a terminal.
fn bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Starts a bar over a computation. Nothing is written meanwhile, so that a signal may end the program at once.
pub(crate) fn items(total: usize, what: &'static str) -> ProgressBar {
    bar(total as u64, ITEMS).with_message(what)
}

/// Writes `contents` to `out`; replaces an existing output only with `force`.
pub(crate) fn write_output(out: &Path, contents: &Output, force: bool) -> Result<()> {
    let progress = WriteProgress::new(contents.bytes())?;
    let existing = if force { IfExists::Replace } else { IfExists::Refuse };
    kron_adapter::write_output(out, contents, existing, &|bytes| progress.advance(bytes))?;
    progress.finish();
    Ok(())
}

/// Progress over bytes that are written; SIGINT and SIGTERM stop it between two pieces.
pub(crate) struct WriteProgress {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl WriteProgress {
    /// Starts a bar over this many bytes and catches the signals.
    ///
    /// # Errors
    /// The system does not let the program catch signals.
    pub fn new(bytes: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The first signal asks for an orderly stop, a second one ends the program at once.
            let registered = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
            registered.map_err(|e| Error::data(format!("signals cannot be caught: {e}")))?;
        }
        Ok(Self { bar: bar(bytes, BYTES), stop })
    }

    /// Adds bytes that were written.
    ///
    /// # Errors
    /// A signal was caught.
    pub fn advance(&self, bytes: u64) -> Result<()> {
        self.bar.inc(bytes);
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::data("interrupted by a signal; nothing half-written is left"));
        }
        Ok(())
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
