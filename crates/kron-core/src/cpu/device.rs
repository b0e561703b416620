//! [`Cpu`]: the host with one instruction set.

use crate::simd::Isa;
use crate::{Error, Result};

/// Forward, backward and merge on the host, on rayon's current thread pool.
///
/// ```
/// use kron_core::{Cpu, Isa};
///
/// let best = Cpu::new();
/// assert_eq!(best.isa(), Isa::detect());
/// // Every machine has the portable instruction set.
/// assert_eq!(Cpu::with_isa(Isa::Portable)?.isa(), Isa::Portable);
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Available on this machine: the constructors check it.
    pub(super) isa: Isa,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// Returns a backend with the best instruction set of this machine.
    pub fn new() -> Self {
        Self { isa: Isa::detect() }
    }

    /// Returns a backend with a given instruction set.
    ///
    /// # Errors
    /// Fails if this machine lacks the instruction set.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::Unsupported(format!(
                "this machine has no {isa}; its best instruction set is {}",
                Isa::detect()
            )));
        }
        Ok(Self { isa })
    }

    /// Instruction set in use.
    pub const fn isa(&self) -> Isa {
        self.isa
    }
}
