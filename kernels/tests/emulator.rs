//! The emulator detects each kind of fault, and the kernels have no such fault.

mod common;

use common::primitives::plain_step;
use common::{CASES, Data};
use half::bf16;
use kron_core::Error;
use kron_kernels::params::KronParams;
use kron_kernels::{Async, Emulated, Launcher, Schedule, StreamHandle};

struct Fault {
    y: Vec<f32>,
    conflicts: u64,
    result: Result<(), Error>,
}

/// Runs one block of a faulty kernel over x = 1, 2, … and y = 0.
fn fault(name: &str, block: u32, shared: u32, on: Emulated) -> Fault {
    faults(name, 1, block, shared, on)
}

fn faults(name: &str, grid: u32, block: u32, shared: u32, on: Emulated) -> Fault {
    let x = (1..=256).map(|v| v as f32).collect::<Vec<_>>();
    let mut y = vec![0.0f32; 256];
    let params = KronParams { x: x.as_ptr() as _, y: y.as_mut_ptr() as _, ..KronParams::default() };
    let kernel = name.try_into().expect("a short name");
    let step = plain_step(kernel, grid, block, shared);
    // SAFETY: the faulty kernels access at most 256 elements of x and y, except for
    // one, which runs only where AddressSanitizer stops it.
    let result = unsafe { on.launch(&step, &params, StreamHandle::DEFAULT) };
    Fault { y, conflicts: on.bank_conflicts.get(), result }
}

#[test]
fn faults_are_reported_by_kernel_and_line() {
    let expected = [
        ("fault_divergent_barrier", 64, 0, "emulate/faults.cu:7"),
        ("fault_early_exit", 64, 0, "deadlock in block 0: 1 of 64 threads have exited"),
        ("fault_lane_outside_mask", 32, 0, "which leaves it out"),
        ("fault_different_masks", 32, 0, "with mask 80000001"),
        ("fault_unwaited_copy", 32, 512, "never waited for"),
        ("fault_too_much_shared", 32, 64, "takes 65 bytes"),
        ("fault_misaligned_copy", 32, 64, "not a multiple of 16"),
        ("fault_no_such_kernel", 32, 0, "no kernel has this name"),
        ("fault_missing_barrier", 96, 256, "exceeds the kernel's launch bounds"),
        ("fault_missing_barrier", 64, 232_449, "at most 232448 bytes"),
    ];
    for (name, block, shared, words) in expected {
        let error = fault(name, block, shared, Emulated::new()).result.expect_err(name).to_string();
        assert!(error.starts_with(name) && error.contains(words), "{name}: {error}");
    }
}

#[test]
fn poison_shows_a_missing_barrier_and_a_weak_wait() {
    let missing = fault("fault_missing_barrier", 64, 256, Emulated::new());
    assert!(missing.result.is_ok() && missing.y[..64].iter().any(|v| v.is_nan()));
    let weak = |copies| fault("fault_weak_wait", 32, 512, Emulated::with(Schedule::Fifo, copies, 1)).y;
    assert!(weak(Async::Lazy)[..32].iter().all(|v| v.is_nan()));
    assert!(weak(Async::Eager)[..32].iter().all(|v| v.is_finite()));
    let coin = weak(Async::Coin);
    assert!(coin[..32].iter().any(|v| v.is_nan()) && coin[..32].iter().any(|v| v.is_finite()));
}

#[test]
fn bank_conflicts_are_counted_and_the_kernels_have_none() {
    // Four matrices of eight rows, all in the same banks: seven extra passes each.
    assert_eq!(fault("fault_bank_conflicts", 32, 4096, Emulated::new()).conflicts, 28);
    for case in CASES {
        let on = Emulated::new();
        Data::<bf16>::new(case).run(&on).expect("the suite runs");
        assert_eq!(on.bank_conflicts.get(), 0, "{case:?}");
    }
}

/// Ends the process under the sanitizer, which scripts/emulate-sanitized.sh expects.
#[cfg(any(feature = "asan", feature = "tsan"))]
#[test]
fn the_sanitizer_stops_this() {
    let kernel = if cfg!(feature = "asan") { "fault_read_past_end" } else { "fault_racing_blocks" };
    let done = faults(kernel, 2, 32, 0, Emulated::new());
    assert!(done.result.is_ok(), "the emulator alone has nothing against {kernel}");
}

#[test]
fn only_the_default_stream_exists() {
    // SAFETY: the emulator refuses the handle without using it.
    let stream = unsafe { StreamHandle::from_raw(16) };
    let kernel = "kron_reduce".try_into().expect("a short name");
    let step = plain_step(kernel, 1, 32, 0);
    // SAFETY: the launch is refused before the parameters are read.
    let error =
        unsafe { Emulated::new().launch(&step, &KronParams::default(), stream) }.expect_err("refused");
    assert!(error.to_string().contains("stream 0x10"), "{error}");
}
