//! The threads of a call: OpenMP's team, which torch computes on, or rayon's pool.
//!
//! Two pools that take turns make each other wait: a thread of OpenMP spins for a while after its work, on the core
//! that a thread of the other pool needs.

use std::any::Any;
use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use kron_core::Team;
use pyo3::prelude::*;

/// Function of GNU OpenMP's and LLVM's library: calls the first argument with the second on each thread of a team.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

static PARALLEL: OnceLock<Parallel> = OnceLock::new();
/// Process that has begun a team; its children have none of its threads.
static OWNER: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// Threads of the call that this thread makes.
    static THREADS: Cell<u32> = const { Cell::new(1) };
}

/// Takes the OpenMP library of this path for all calls to come, if the process has loaded it; returns whether it did.
#[cfg(unix)]
#[pyfunction]
pub fn use_openmp(path: PathBuf) -> bool {
    use libloading::os::unix::{Library, RTLD_NOW};
    /// Flag of dlopen on Linux: finds a library that is loaded, and loads none.
    const RTLD_NOLOAD: i32 = 4;
    // SAFETY: the library is loaded already, so that no initialiser runs.
    let Ok(library) = (unsafe { Library::open(Some(path), RTLD_NOW | RTLD_NOLOAD) }) else { return false };
    // SAFETY: both implementations of OpenMP declare the function so.
    let Ok(parallel) = (unsafe { library.get::<Parallel>(b"GOMP_parallel") }) else { return false };
    let parallel = *PARALLEL.get_or_init(|| *parallel);
    // The function is used to the end of the process.
    std::mem::forget(library);
    let _ = parallel;
    true
}

#[cfg(not(unix))]
#[pyfunction]
pub fn use_openmp(_: PathBuf) -> bool {
    false
}

/// Returns the team of a call by so many threads. A forked child computes on the calling thread, for it has no
/// other thread, and no pool that would start one.
pub fn of(threads: u32) -> Team {
    let process = std::process::id();
    let owner = OWNER.compare_exchange(0, process, Relaxed, Relaxed).unwrap_or_else(|owner| owner);
    if threads <= 1 || (owner != 0 && owner != process) {
        return Team::Caller;
    }
    THREADS.set(threads);
    if PARALLEL.get().is_some() { Team::Custom(on_openmp) } else { Team::Rayon }
}

/// Tasks that the threads of a team take one after another.
struct Tasks<'a> {
    next: AtomicUsize,
    count: usize,
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

fn on_openmp(count: usize, task: &(dyn Fn(usize) + Sync)) {
    let Some(parallel) = PARALLEL.get() else { return };
    let tasks = Tasks { next: AtomicUsize::new(0), count, task, panic: Mutex::new(None) };
    let threads = THREADS.get().min(c_uint::try_from(count).unwrap_or(c_uint::MAX));
    // SAFETY: the function calls `member` with the pointer on each thread of a team, and returns when all calls have;
    // `tasks` lives until then.
    unsafe { parallel(member, (&raw const tasks).cast_mut().cast(), threads, 0) };
    if let Some(panic) = tasks.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// Computes tasks until none is left. A panic must not unwind through OpenMP's frames.
extern "C" fn member(tasks: *mut c_void) {
    // SAFETY: `on_openmp` passes its tasks, which outlive the call and are shared.
    let tasks = unsafe { &*tasks.cast::<Tasks>() };
    let run = || {
        loop {
            match tasks.next.fetch_add(1, Relaxed) {
                i if i < tasks.count => (tasks.task)(i),
                _ => return,
            }
        }
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        *tasks.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}
