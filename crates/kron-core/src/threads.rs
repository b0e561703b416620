//! The threads of a program.

use crate::{Error, Result};

/// Starts the threads of rayon's global pool, which the CPU's passes run on.
///
/// A program calls it first: without it the pool starts with the first parallel loop, and a system that grants no
/// thread makes that loop panic. A pool that runs already stays as it is.
///
/// # Errors
/// Fails if the system grants no further thread.
pub fn start_threads() -> Result<()> {
    use std::error::Error as _;
    match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a cause the pool exists already.
        Err(e) if e.source().is_some() => Err(Error::Unsupported(format!(
            "no threads can be started: {e}; RAYON_NUM_THREADS limits their number"
        ))),
        _ => Ok(()),
    }
}
