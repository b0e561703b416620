//! The threads of a call on the host: OpenMP's team, which torch computes on, or the library's own pool.
//!
//! Two pools that take turns make each other wait: a thread of OpenMP spins for a while after its work, on the core
//! that a thread of the other pool needs.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kron_capi::{KronTask, kron_set_runner};
use pyo3::prelude::*;

/// Function of GNU OpenMP's and LLVM's library: calls the first argument with the second on each thread of a team.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

static PARALLEL: OnceLock<Parallel> = OnceLock::new();

thread_local! {
    /// Threads of this thread's calls.
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
    PARALLEL.get_or_init(|| *parallel);
    // The function is used to the end of the process.
    std::mem::forget(library);
    true
}

#[cfg(not(unix))]
#[pyfunction]
pub fn use_openmp(_: PathBuf) -> bool {
    false
}

/// Sets the threads of this thread's calls on the host.
pub fn set(threads: u32) {
    THREADS.set(threads);
    let own_pool = threads > 1 && PARALLEL.get().is_none();
    // SAFETY: `run` returns when all tasks have.
    unsafe { kron_set_runner(if own_pool { None } else { Some(run) }) };
}

/// Tasks that the threads of a team take one after another.
struct Tasks {
    next: AtomicUsize,
    count: usize,
    task: KronTask,
    data: *mut c_void,
}

/// Runs the tasks on OpenMP's team; one thread leaves them to the library, which computes them on the calling thread.
unsafe extern "C" fn run(count: usize, task: KronTask, data: *mut c_void) {
    let (threads, Some(parallel)) = (THREADS.get(), PARALLEL.get()) else { return };
    if threads <= 1 {
        return;
    }
    let tasks = Tasks { next: AtomicUsize::new(0), count, task, data };
    let threads = threads.min(c_uint::try_from(count).unwrap_or(c_uint::MAX));
    // SAFETY: the function calls `member` with the pointer on each thread of a team, and returns when all calls have;
    // `tasks` lives until then.
    unsafe { parallel(member, (&raw const tasks).cast_mut().cast(), threads, 0) };
}

/// Computes tasks until none is left.
extern "C" fn member(tasks: *mut c_void) {
    // SAFETY: `run` passes its tasks, which outlive the call and are shared; the library's tasks may run on any thread.
    let tasks = unsafe { &*tasks.cast::<Tasks>() };
    loop {
        match tasks.next.fetch_add(1, Relaxed) {
            i if i < tasks.count => (tasks.task)(tasks.data, i),
            _ => return,
        }
    }
}
