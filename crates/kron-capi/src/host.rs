//! Calls that the host alone computes: those over segments.

use kron_core::{Cpu, Element, Error, Result};

use crate::dtype::with_dtype;
use crate::types::KronDevice;
use crate::{fork, team};

/// Returns the host's backend, ready for a call of this thread.
///
/// # Errors
/// The caller named a device.
pub(crate) fn host(device: Option<&KronDevice>) -> Result<Cpu> {
    if let Some(device) = device {
        return Err(Error::Unsupported(format!(
            "the call names device {}, but calls over segments compute on the host alone; on a device use kron_forward_pool",
            device.device
        )));
    }
    fork::prepare_host()?;
    Ok(team::host())
}

/// A call over a pool of adapters.
pub(crate) trait HostCall: Copy {
    type Over<'a>;
    fn dtype(&self) -> u32;
    /// # Safety
    /// The struct's pointers hold the elements that it describes, of type E.
    unsafe fn run<E: Element>(&self, cpu: &Cpu, over: &Self::Over<'_>) -> Result<()>;
}

/// Runs a call with the type that it names.
///
/// # Safety
/// The struct's pointers hold the elements that it describes.
pub(crate) unsafe fn run<C: HostCall>(cpu: &Cpu, over: &C::Over<'_>, call: C) -> Result<()> {
    // SAFETY: the caller's promise; the arm is the struct's dtype.
    unsafe { with_dtype!(call.dtype(), E => call.run::<E>(cpu, over)) }
}
