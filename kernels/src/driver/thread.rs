//! The state of a thread that a call changes and puts back: its context, and its minding of captures.

use cudarc::driver::{CudaContext, DriverError, result, sys};

/// The current context of this thread, which comes back when the value is dropped.
pub(super) struct Current {
    /// The context to make current again, null for none; `None` if nothing has changed.
    before: Option<sys::CUcontext>,
}

impl Current {
    /// Makes a context current.
    pub(super) fn of(context: &CudaContext) -> Result<Self, DriverError> {
        let before = result::ctx::get_current()?;
        context.bind_to_thread()?;
        let same = before == Some(context.cu_ctx());
        Ok(Self { before: (!same).then_some(before.unwrap_or(std::ptr::null_mut())) })
    }

    /// Changes nothing, so that what follows may. The driver has started.
    pub(super) fn kept() -> Result<Self, DriverError> {
        Ok(Self { before: Some(result::ctx::get_current()?.unwrap_or(std::ptr::null_mut())) })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: the context was current, or it is null, which makes none current. A context that was
            // destroyed meanwhile is refused.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

/// Allows this thread calls that a capture under way would forbid, until the value is dropped.
///
/// Allocating, freeing and loading end no work that a capture records, which runs only later; without
/// this they fail while anyone captures in the driver's strictest mode, and invalidate that capture.
pub(super) struct Relaxed(sys::CUstreamCaptureMode);

impl Relaxed {
    pub(super) fn begin() -> Result<Self, DriverError> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the call exchanges the thread's mode and the one that it is given.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result()?;
        Ok(Self(mode))
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as in `begin`; the mode is the one that it returned.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}
