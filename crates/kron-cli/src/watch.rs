//! What goes on during long work: a progress bar on the standard error, and the wish to stop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kron_adapter::Contents;
use kron_adapter::Existing;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{Error, Result};

const BYTES: &str = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const ITEMS: &str = "{bar:40} {pos}/{len} {msg} {eta}";

/// The bar, which a standard error that is no terminal does not get.
fn bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A bar over what is only computed: a signal ends that by itself, as nothing is written.
pub(crate) fn items(total: usize, what: &'static str) -> ProgressBar {
    bar(total as u64, ITEMS).with_message(what)
}

/// Puts `contents` under `out`; what is there is replaced by force alone.
pub(crate) fn place(out: &Path, contents: &Contents, force: bool) -> Result<()> {
    let watch = Watch::new(contents.bytes())?;
    let existing = if force { Existing::Replace } else { Existing::Refuse };
    kron_adapter::place(out, contents, existing, &|bytes| watch.passed(bytes))?;
    watch.finish();
    Ok(())
}

/// A bar over bytes that are written, where a signal asks for an orderly end.
pub(crate) struct Watch {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Watch {
    pub fn new(bytes: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The first one asks for an orderly end, a second one does not wait for it.
            let registered = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.clone()));
            registered.map_err(|e| Error::data(format!("signals cannot be caught: {e}")))?;
        }
        Ok(Self { bar: bar(bytes, BYTES), stop })
    }

    /// Counts bytes that were written.
    ///
    /// # Errors
    /// A signal has come.
    pub fn passed(&self, bytes: u64) -> Result<()> {
        self.bar.inc(bytes);
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::data("interrupted by a signal; nothing half-written is left"));
        }
        Ok(())
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
