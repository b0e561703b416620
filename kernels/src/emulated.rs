//! [`Emulated`]: runs the kernels' own source on the host, for tests.
//!
//! Blocks run one after another, each thread as a fiber; `cuda/emulate/emulator.h` lists the
//! checks. The emulation tests the C++ around the primitives, not nvcc's code.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int};

use crate::Problem;
use crate::device::StreamHandle;
use crate::launcher::Launcher;
use crate::params::KronParams;
use crate::plan::{BLOCKS, GroupPlan, LaunchPlan, Step};
use kron_core::{Error, Result};

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
    /// Random priorities of warps, rarely redrawn; finds dropped barriers.
    Pct = 3,
}

/// Arrival time of a cp.async's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Async {
    /// At the wait, as late as the hardware may.
    Lazy = 0,
    /// At once, as early as it may.
    Eager = 1,
    /// By a coin for each copy.
    Coin = 2,
}

#[repr(C)]
struct Options {
    schedule: u32,
    copies: u32,
    seed: u64,
    fault_file: *const c_char,
    fault_line: i32,
}

#[repr(C)]
struct RawSite {
    file: *const c_char,
    line: c_int,
}

#[repr(C)]
struct Report {
    bank_conflicts: u64,
    faults: u64,
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
    fn kron_emulate_site(i: u32) -> RawSite;
}

/// A barrier or a wait for copies, with its kernel and its place in `cuda/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// The kernel that reached it.
    pub kernel: String,
    /// The file's name.
    pub file: String,
    /// Its line.
    pub line: u32,
}

/// The emulated device. Buffers are host memory.
#[derive(Debug)]
pub struct Emulated {
    /// Order of threads.
    pub schedule: Schedule,
    /// Time of asynchronous copies.
    pub copies: Async,
    /// Seed of both; equal seeds give equal runs.
    pub seed: u64,
    /// Number of blocks that plans aim at. With few blocks each takes many steps even in a small problem.
    pub blocks: usize,
    /// Extra shared-memory passes that ldmatrix has cost so far.
    pub bank_conflicts: Cell<u64>,
    /// Barriers and waits that kernels have reached so far.
    pub sites: RefCell<BTreeSet<Site>>,
    /// Injected fault: this barrier is left out, or this wait lets one more group of copies be under way.
    pub fault: Option<Site>,
    /// Number of times that a kernel has reached the fault.
    pub faults: Cell<u64>,
}

impl Emulated {
    /// Runs threads in order and brings copies as late as the hardware may.
    pub const fn new() -> Self {
        Self::with(Schedule::Fifo, Async::Lazy, 0)
    }

    /// Runs with a chosen order.
    pub const fn with(schedule: Schedule, copies: Async, seed: u64) -> Self {
        let (bank_conflicts, faults) = (Cell::new(0), Cell::new(0));
        let sites = RefCell::new(BTreeSet::new());
        Self { schedule, copies, seed, blocks: BLOCKS, bank_conflicts, sites, fault: None, faults }
    }

    /// Returns the names of all kernels.
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
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        LaunchPlan::aimed_at(self.blocks, problem)
    }

    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        LaunchPlan::segments_aimed_at(self.blocks, problem, slots)
    }

    fn plan_group(&self, x: &Problem, terms: &[Problem]) -> Result<Option<GroupPlan>> {
        GroupPlan::aimed_at(self.blocks, x, terms)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        if stream != StreamHandle::DEFAULT {
            return Err(Error::Device(format!(
                "stream {:#x} is given, but the emulator has only the default stream",
                stream.raw()
            )));
        }
        let kernel = CString::new(step.kernel.as_str()).map_err(|e| Error::Device(e.to_string()))?;
        let fault = self.fault.as_ref().filter(|f| f.kernel == step.kernel.as_str());
        let file = fault.map(|f| CString::new(f.file.as_str())).transpose();
        let file = file.map_err(|e| Error::Device(e.to_string()))?;
        let options = Options {
            schedule: self.schedule as u32,
            copies: self.copies as u32,
            seed: self.seed,
            fault_file: file.as_ref().map_or(std::ptr::null(), |f| f.as_ptr()),
            fault_line: fault.map_or(0, |f| f.line as i32),
        };
        let mut report = Report { bank_conflicts: 0, faults: 0, message: [0; 1024] };
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
        self.faults.set(self.faults.get() + report.faults);
        self.sites.borrow_mut().extend(sites(&step.kernel));
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the emulator ends its message with a zero inside the array.
        let message = unsafe { CStr::from_ptr(report.message.as_ptr()) };
        Err(Error::Device(message.to_string_lossy().into_owned()))
    }
}

/// Returns the barriers and waits that this thread's last launch reached.
fn sites(kernel: &str) -> impl Iterator<Item = Site> {
    (0..).map_while(move |i| {
        // SAFETY: the function takes any index; the file it returns is null or a static string.
        let (file, line) = unsafe {
            let site = kron_emulate_site(i);
            ((!site.file.is_null()).then(|| CStr::from_ptr(site.file).to_string_lossy()), site.line)
        };
        let file = file?.rsplit('/').next().unwrap_or_default().to_owned();
        Some(Site { kernel: kernel.to_owned(), file, line: line.unsigned_abs() })
    })
}
