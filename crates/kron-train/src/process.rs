//! Settings of the process: an allocator that keeps its blocks, and one pool of threads.
#![expect(unsafe_code, reason = "mimalloc's options and the environment have no safe interface")]

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// Number of mimalloc's option `purge_delay`, in milliseconds; −1 never gives memory back.
const PURGE_DELAY: mi_option_t = 15;
const NEVER: c_long = -1;
/// Variable by which a user sets the same option.
const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";
/// Variable that gives candle's own pool its threads.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Keeps freed blocks in the process, unless the user has set a delay. Runs before any thread starts.
///
/// A step frees and allocates the same blocks as the one before. Given back, each page is cleared
/// by the system on its next first touch, which was half the time of a step of a language model.
pub fn keep_blocks() {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the function takes two integers and stores the second in a table; it ignores a
        // number beyond the table. It runs before any other thread, which could read the table.
        unsafe { mi_option_set(PURGE_DELAY, NEVER) };
    }
}

/// Leaves candle's own pool without threads, unless the user has set their number. Runs before any thread starts.
///
/// Its threads wait by spinning, on the cores that rayon's threads compute on: a sixth of a step's samples.
pub fn keep_one_pool() {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: it runs before any other thread, which could read the environment.
        unsafe { std::env::set_var(CANDLE_THREADS, "1") };
    }
}
