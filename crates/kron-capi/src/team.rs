//! The threads of a call on the host: rayon's pool, or those of the calling thread's runner.

use std::any::Any;
use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use kron_core::{Cpu, Team};

use crate::fork;
use crate::types::KronRunner;

thread_local! {
    static RUNNER: Cell<KronRunner> = const { Cell::new(None) };
}

/// Takes the runner of this thread's calls to come.
pub(crate) fn set(runner: KronRunner) {
    RUNNER.set(runner);
}

/// Returns the host's backend. A forked process has none of a runner's threads, and keeps the pool of its one thread.
pub(crate) fn host() -> Cpu {
    match RUNNER.get() {
        Some(_) if !fork::is_forked() => Cpu::new().on(Team::Custom(run)),
        _ => Cpu::new(),
    }
}

/// Tasks of a call, and the first panic among them, which must not unwind into C.
struct Tasks<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

fn run(count: usize, task: &(dyn Fn(usize) + Sync)) {
    let Some(runner) = RUNNER.get() else { return };
    let tasks = Tasks { task, panic: Mutex::new(None) };
    // SAFETY: `kron.h` requires a runner to call `one` with this pointer, on any threads, and to return when all calls
    // have returned; `tasks` lives until then.
    unsafe { runner(count, one, (&raw const tasks).cast_mut().cast()) };
    if let Some(panic) = tasks.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

extern "C" fn one(tasks: *mut c_void, i: usize) {
    // SAFETY: `run` passes its tasks, which are shared and outlive the call.
    let tasks = unsafe { &*tasks.cast::<Tasks>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (tasks.task)(i))) {
        tasks.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}
