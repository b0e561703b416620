//! The threads of a program.

use crate::{Error, Result};

/// Starts the threads of rayon's global pool, which the CPU's passes run on.
///
/// A program calls it first: without it the pool starts with the first parallel loop, and a system that grants no
/// thread makes that loop panic. A pool that runs already stays as it is.
///
/// The pool has a thread for each of the processors that are this process's, if `processes` of equal need share the
/// machine, or as many as the variable `RAYON_NUM_THREADS` says.
///
/// # Errors
/// Fails if the system grants no further thread.
pub fn start_threads(processes: usize) -> Result<()> {
    use std::error::Error as _;
    let mut pool = rayon::ThreadPoolBuilder::new();
    if processes > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        pool = pool.num_threads((processors / processes).max(1));
    }
    match pool.build_global() {
        // Without a cause the pool exists already.
        Err(e) if e.source().is_some() => Err(Error::Unsupported(format!(
            "no threads can be started: {e}; RAYON_NUM_THREADS limits their number"
        ))),
        _ => Ok(()),
    }
}
