//! [`Emulated`]: runs the kernels' own source on the host, for tests.
//!
//! One block at a time and one fiber a thread; see `cuda/emulate.h` for what
//! it checks. It tests the C++ around the primitives, not nvcc's code.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};

use crate::device::StreamHandle;
use crate::launch::Launcher;
use crate::params::KronParams;
use crate::plan::Step;
use crate::{Error, Result};

/// Order in which threads run between two meetings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Schedule {
    /// Lowest first.
    Fifo = 0,
    /// Highest first.
    Reverse = 1,
    /// Any thread, from the seed.
    Random = 2,
    /// Random priorities of warps, rarely redrawn: what finds dropped barriers.
    Pct = 3,
}

/// When the bytes of a cp.async appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Async {
    /// At the wait, as late as the hardware may.
    Lazy = 0,
    /// At once, as early as it may.
    Eager = 1,
    /// A coin per copy.
    Coin = 2,
}

#[repr(C)]
struct Options {
    schedule: u32,
    copies: u32,
    seed: u64,
}

#[repr(C)]
struct Report {
    bank_conflicts: u64,
    message: [c_char; 1024],
}

unsafe extern "C" {
    fn kron_emulate(
        kernel: *const c_char,
        params: *const KronParams,
        grid: u64,
        block: u32,
        shared: u32,
        options: *const Options,
        report: *mut Report,
    ) -> c_int;
    fn kron_emulate_kernel(i: u32) -> *const c_char;
}

/// The emulated device. Buffers are host memory.
#[derive(Debug)]
pub struct Emulated {
    /// Order of threads.
    pub schedule: Schedule,
    /// Time of asynchronous copies.
    pub copies: Async,
    /// What both draw from: equal seeds, equal runs.
    pub seed: u64,
    /// Extra shared-memory passes that ldmatrix has cost so far.
    pub bank_conflicts: Cell<u64>,
}

impl Emulated {
    /// Threads in order, copies as late as they may be.
    pub const fn new() -> Self {
        Self::with(Schedule::Fifo, Async::Lazy, 0)
    }

    /// A chosen order.
    pub const fn with(schedule: Schedule, copies: Async, seed: u64) -> Self {
        Self { schedule, copies, seed, bank_conflicts: Cell::new(0) }
    }

    /// The names of all kernels.
    pub fn kernels() -> Vec<String> {
        // SAFETY: the function takes any index and returns null or a static string.
        let name = |i| unsafe {
            let name = kron_emulate_kernel(i);
            (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
        };
        (0..).map_while(name).collect()
    }
}

impl Default for Emulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Launcher for Emulated {
    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        if stream != StreamHandle::DEFAULT {
            return Err(Error::Launch(format!(
                "stream {:#x} is given, but the emulator has only the default stream",
                stream.raw()
            )));
        }
        let kernel = CString::new(step.kernel.as_str()).map_err(|e| Error::Launch(e.to_string()))?;
        let options = Options { schedule: self.schedule as u32, copies: self.copies as u32, seed: self.seed };
        let mut report = Report { bank_conflicts: 0, message: [0; 1024] };
        // SAFETY: the caller's promise about the pointers in `params`; the
        // other arguments live across the call, and their layouts are the header's.
        let failed = unsafe {
            kron_emulate(
                kernel.as_ptr(),
                params,
                step.grid.into(),
                step.block,
                step.shared,
                &options,
                &mut report,
            )
        };
        self.bank_conflicts.set(self.bank_conflicts.get() + report.bank_conflicts);
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the emulator ends its message with a zero inside the array.
        let message = unsafe { CStr::from_ptr(report.message.as_ptr()) };
        Err(Error::Launch(message.to_string_lossy().into_owned()))
    }
}
