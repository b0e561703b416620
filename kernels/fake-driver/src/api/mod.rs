//! The libraries' functions, by their C names.

mod device;
mod graph;
mod lt;
mod memory;
mod module;
mod stream;

use cudarc::driver::sys::{CUresult, CUstream};

use crate::Done;
use crate::work::StreamKey;

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `to` is null or valid for a write.
unsafe fn give<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Returns the key of a stream; handle 1 is another name of the legacy stream.
fn key(context: u64, stream: CUstream) -> StreamKey {
    (context, if stream as u64 == 1 { 0 } else { stream as u64 })
}
