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

/// Each block takes many steps, so that every stage of every pipeline is filled repeatedly.
#[test]
fn fifo_with_many_steps_per_block() {
    for case in CASES {
        check::<bf16>(case, &Emulated { blocks: 1, ..Emulated::new() });
        check::<f16>(case, &Emulated { blocks: 5, ..Emulated::new() });
    }
}

#[test]
fn pct_with_random_copies() {
    for (i, case) in CASES.into_iter().enumerate() {
        for seed in [1, 2, 3] {
            let on = Emulated::with(Schedule::Pct, Async::Coin, seed + 10 * i as u64);
            check::<bf16>(case, &Emulated { blocks: if seed == 1 { 264 } else { 1 }, ..on });
        }
        for (seed, blocks) in [(4, 264), (5, 1)] {
            let on = |seed| Emulated::with(Schedule::Pct, Async::Coin, seed + 10 * i as u64);
            check::<f16>(case, &Emulated { blocks, ..on(seed) });
            check::<f32>(case, &Emulated { blocks, ..on(seed + 2) });
        }
    }
}

/// Fails if any output bit depends on the order of threads and copies.
fn same_bits<E: Float>(case: Case) {
    let run = |on: Emulated| {
        let two_blocks = Emulated { blocks: 2, ..Emulated::with(on.schedule, on.copies, on.seed) };
        let bits = |on| Data::<E>::new(case).run(&on).expect("the suite runs").bits();
        [bits(on), bits(two_blocks)]
    };
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
