//! Every kernel × dtype × case against the float64 oracle, on the emulator.

mod common;

use common::{CASES, Case, Data, Float, check};
use half::{bf16, f16};
use kron_kernels::{Async, Emulated, Schedule};

fn all(case: Case, on: &Emulated) {
    check::<f32>(case, on);
    check::<f16>(case, on);
    check::<bf16>(case, on);
}

#[test]
fn fifo_with_lazy_copies() {
    CASES.into_iter().for_each(|case| all(case, &Emulated::new()));
}

#[test]
fn pct_with_random_copies() {
    for (i, case) in CASES.into_iter().enumerate() {
        for seed in [1, 2, 3] {
            check::<bf16>(case, &Emulated::with(Schedule::Pct, Async::Coin, seed + 10 * i as u64));
        }
        check::<f32>(case, &Emulated::with(Schedule::Pct, Async::Coin, 7 + i as u64));
        check::<f16>(case, &Emulated::with(Schedule::Pct, Async::Eager, 8 + i as u64));
    }
}

/// The order of threads and copies must not show in a single bit.
fn same_bits<E: Float>(case: Case) {
    let run = |on: Emulated| Data::<E>::new(case).run(&on).expect("the suite runs").bits();
    let first = run(Emulated::new());
    for (schedule, copies, seed) in [
        (Schedule::Reverse, Async::Eager, 0),
        (Schedule::Random, Async::Coin, 5),
        (Schedule::Pct, Async::Lazy, 6),
    ] {
        assert!(first == run(Emulated::with(schedule, copies, seed)), "{schedule:?} {copies:?} {case:?}");
    }
}

#[test]
fn bits_do_not_depend_on_the_schedule() {
    for case in CASES {
        same_bits::<f32>(case);
        same_bits::<bf16>(case);
    }
}
