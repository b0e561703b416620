//! Processes that were forked from one that had called the library: they have one thread, the one
//! that forked, and a copy of everything that the other threads left behind.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use kron_core::{Error, Result};
use rayon::ThreadPoolBuilder;

/// The process that first used something that a fork does not copy whole.
pub(crate) struct Owner(AtomicU32);

impl Owner {
    /// Starts without an owner; no process has the id 0.
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Returns true in the first process that asks, and false in those forked from it later.
    pub(crate) fn is_this_process(&self) -> bool {
        let this = std::process::id();
        self.0.compare_exchange(0, this, Relaxed, Relaxed).map_or_else(|owner| owner == this, |_| true)
    }
}

/// Returns true in a process that was forked from one that had called on the host.
pub(crate) fn is_forked() -> bool {
    static HOST: Owner = Owner::new();
    !HOST.is_this_process()
}

/// Prepares the calling thread for a call on the host.
///
/// In a forked process rayon's pool has no threads, and a call would wait for them for ever. There
/// the calling thread becomes a pool of its own. That starts no thread and takes no lock that
/// another thread could have held during the fork, as a new pool of threads would; and it is what
/// one worker process for each core wants. Sums do not depend on the pool, so the bits are the same.
pub(crate) fn prepare_host() -> Result<()> {
    if !is_forked() || rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    let alone = alone.map_err(|e| Error::Unsupported(format!("a thread of a forked process: {e}")))?;
    // The thread stays in its pool for life: a few kilobytes for each thread that calls.
    std::mem::forget(alone);
    Ok(())
}
