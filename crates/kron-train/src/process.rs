//! Settings of the process: an allocator that keeps its blocks, and one pool of threads.
#![expect(unsafe_code, reason = "mimalloc's options and the environment have no safe interface")]

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// Number of mimalloc's option `purge_delay`, in milliseconds; −1 never gives memory back.
const PURGE_DELAY: mi_option_t = 15;
const NEVER: c_long = -1;
/// Number of its option `allow_large_os_pages`: pages of 2 MiB where the system has them.
const LARGE_PAGES: mi_option_t = 6;
/// Each option with its value, and the variable by which a user sets it.
const OPTIONS: [(mi_option_t, c_long, &str); 2] =
    [(PURGE_DELAY, NEVER, "MIMALLOC_PURGE_DELAY"), (LARGE_PAGES, 1, "MIMALLOC_ALLOW_LARGE_OS_PAGES")];
/// Variables of the threads, each with its value: candle's own pool has none beside the one that calls it, and a thread
/// has a stack in bytes as large as the main thread's, for the program runs as a whole on one of rayon's.
const THREADS: [(&str, &str); 2] = [("CANDLE_NUM_THREADS", "1"), ("RUST_MIN_STACK", "8388608")];

/// Keeps freed blocks in the process, in large pages, unless the user has set these options. Runs before any thread starts.
///
/// A step frees and allocates the same blocks as the one before. Given back, each page is cleared
/// by the system on its next first touch, which was half the time of a step of a language model. Large
/// pages save most look-ups of addresses, each of which costs a virtual machine two walks of tables.
pub fn keep_blocks() {
    for (option, value, variable) in OPTIONS {
        if std::env::var_os(variable).is_none() {
            // SAFETY: the function takes two integers and stores the second in a table; it ignores a
            // number beyond the table. It runs before any other thread, which could read the table.
            unsafe { mi_option_set(option, value) };
        }
    }
}

/// Sets the threads' variables, unless the user has. Runs before any thread starts.
///
/// The threads of candle's own pool wait by spinning, on the cores that rayon's threads compute on: a sixth of a step's
/// samples.
pub fn keep_one_pool() {
    for (variable, value) in THREADS {
        if std::env::var_os(variable).is_none() {
            // SAFETY: it runs before any other thread, which could read the environment.
            unsafe { std::env::set_var(variable, value) };
        }
    }
}
