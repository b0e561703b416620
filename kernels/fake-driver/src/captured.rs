//! A capture under way, and the modes that captures and threads have.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::thread::ThreadId;

use cudarc::driver::sys::CUresult;

use crate::Done;
use crate::work::{StreamKey, Work};

/// Reach of a capture, and of a thread's calls: numbered as in the driver API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The capture forbids unsafe calls in every thread; the thread minds such captures.
    Global = 0,
    /// Those of its own thread.
    ThreadLocal = 1,
    /// None.
    Relaxed = 2,
}

impl Mode {
    pub fn of(number: u32) -> Done<Self> {
        [Mode::Global, Mode::ThreadLocal, Mode::Relaxed]
            .into_iter()
            .find(|&mode| mode as u32 == number)
            .ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }
}

thread_local! {
    pub static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// Sets this thread's mode and returns the one before.
pub fn exchange(mode: Mode) -> Mode {
    MODE.replace(mode)
}

/// A capture under way.
pub struct Capture {
    pub origin: StreamKey,
    pub mode: Mode,
    pub thread: ThreadId,
    pub invalid: bool,
    pub nodes: Vec<Work>,
    /// Counts what the streams did.
    pub moment: usize,
    /// Streams of the capture with the moment of their last work, and the last that another waits for.
    pub members: BTreeMap<StreamKey, (usize, usize)>,
}

/// A moment of a capture that an event stands for.
#[derive(Clone, Copy)]
pub struct Moment {
    pub capture: u64,
    pub stream: StreamKey,
    pub moment: usize,
}
