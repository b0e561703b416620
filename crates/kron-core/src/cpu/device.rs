//! [`Cpu`]: the host with one instruction set.

use super::team::Team;
use crate::simd::Isa;
use crate::{Error, Result};

/// Forward, backward and merge on the host, on rayon's current thread pool or a given [`Team`].
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
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Available on this machine: the constructors check it.
    pub(super) isa: Isa,
    pub(super) team: Team,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// Returns a backend with the best instruction set of this machine.
    pub fn new() -> Self {
        Self { isa: Isa::detect(), team: Team::default() }
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
        Ok(Self { isa, team: Team::default() })
    }

    /// Returns a backend that computes on other threads, with the same results bit for bit.
    ///
    /// ```
    /// use kron_core::{Cpu, Team};
    ///
    /// let alone = Cpu::new().on(Team::Caller);
    /// let scoped = Cpu::new().on(Team::Custom(|count, task| {
    ///     std::thread::scope(|threads| (0..count).for_each(|i| drop(threads.spawn(move || task(i)))));
    /// }));
    /// # let _ = (alone, scoped);
    /// ```
    #[must_use]
    pub const fn on(self, team: Team) -> Self {
        Self { team, ..self }
    }

    /// Instruction set in use.
    pub const fn isa(&self) -> Isa {
        self.isa
    }
}
