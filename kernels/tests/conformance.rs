//! Every kernel × dtype × case against the float64 oracle, on the emulator.

mod common;

use std::cell::Cell;

use common::{CASES, Case, Data, Float, OFFSET, SEED, check};
use half::{bf16, f16};
use kron_core::DropoutKey;
use kron_kernels::{Async, Cuda, Emulated, KeyHandle, Schedule};

fn all(case: Case, on: &Emulated) {
    check::<f32>(case, on);
    check::<f16>(case, on);
    check::<bf16>(case, on);
}

#[test]
fn fifo_with_lazy_copies() {
    CASES.into_iter().for_each(|case| all(case, &Emulated::new()));
}

/// The key of a mask is the sum of the call's own and of the numbers in memory, which are read when kernels run.
#[test]
fn fifo_with_a_key_in_memory() {
    let memory = [SEED.wrapping_sub(7), OFFSET.wrapping_add(3)].map(Cell::new);
    let cuda = Cuda::with(Emulated::new());
    // SAFETY: the array is aligned and outlives the calls, which have run when they return.
    let added = cuda.with_key(unsafe { KeyHandle::from_raw(memory.as_ptr() as u64) });
    let dropping = CASES.into_iter().filter(|case| case.dropout > 0).collect::<Vec<_>>();
    for &case in &dropping {
        let bits = |on: &Cuda<_>, seed, offset| {
            let key = Some(DropoutKey { seed, offset });
            Data::<bf16>::new(case).run_with(on, key).expect("the suite runs").bits()
        };
        let by_value = bits(&cuda, SEED, OFFSET);
        assert!(bits(&added, 7, 3u64.wrapping_neg()) == by_value, "{case:?}");
        let old = memory[1].replace(OFFSET);
        assert!(bits(&added, 7, 3u64.wrapping_neg()) != by_value, "{case:?}");
        memory[1].set(old);
    }
    assert!(dropping.len() > 10, "{} cases drop", dropping.len());
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
