//! Request to stop: the first Ctrl-C saves and ends the run, the second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{Result, invalid};

/// Shared flag that asks a run to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Makes a flag that SIGINT and SIGTERM set; the second signal ends the process with status 130.
    ///
    /// On Windows, Ctrl-C arrives as SIGINT.
    ///
    /// # Errors
    /// A signal handler cannot be registered.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop.0.clone())
                .and_then(|_| signal_hook::flag::register(signal, stop.0.clone()))
                .map_err(|e| invalid(format!("Ctrl-C cannot be caught: {e}")))?;
        }
        Ok(stop)
    }

    /// Asks the run to stop after its current step.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns `true` once a stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
