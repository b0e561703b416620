//! Calls over a group on the emulator: against the oracle, and what a joined call reads.

mod common;

use std::cell::RefCell;

use common::group::{GROUPS, Group, GroupCase, check};
use half::{bf16, f16};
use kron_core::{Dtype, KronShape, LayerDims, Pass, Result, Split, philox};
use kron_kernels::params::KronParams;
use kron_kernels::plan::BLOCKS;
use kron_kernels::{
    Async, DeviceGroup, DeviceSlice, DeviceTerm, Emulated, GroupPlan, LaunchPlan, Launcher, Problem,
    Schedule, Step, StreamHandle, group_workspace_len,
};

fn all(case: GroupCase, on: &impl Launcher) {
    check::<f32>(case, on);
    check::<f16>(case, on);
    check::<bf16>(case, on);
}

#[test]
fn joined_calls_agree_with_the_oracle() {
    for (case, blocks) in GROUPS.into_iter().flat_map(|case| [(case, BLOCKS), (case, 1)]) {
        all(case, &Emulated { blocks, ..Emulated::new() });
    }
}

#[test]
fn bits_do_not_depend_on_the_schedule() {
    for case in GROUPS {
        let bits = |on: &Emulated| Group::<bf16>::new(case).run(on).expect("the suite runs").bits();
        let first = bits(&Emulated::new());
        for (schedule, copies, seed) in [
            (Schedule::Reverse, Async::Eager, 0),
            (Schedule::Random, Async::Coin, 5),
            (Schedule::Pct, Async::Lazy, 6),
        ] {
            assert!(first == bits(&Emulated::with(schedule, copies, seed)), "{schedule:?} {case:?}");
        }
    }
}

/// Notes the kernels, and joins no call if it is told not to.
struct Noted {
    on: Emulated,
    joins: bool,
    kernels: RefCell<Vec<String>>,
}

impl Launcher for Noted {
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        self.on.plan(problem)
    }
    fn plan_group(&self, x: &Problem, terms: &[Problem]) -> Result<Option<GroupPlan>> {
        if self.joins { self.on.plan_group(x, terms) } else { Ok(None) }
    }
    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        self.kernels.borrow_mut().push(step.kernel.to_string());
        // SAFETY: the caller's promise about the pointers in `params`.
        unsafe { self.on.launch(step, params, stream) }
    }
}

#[test]
fn a_joined_call_has_one_pass_over_x() {
    for (case, blocks) in GROUPS.into_iter().flat_map(|case| [(case, BLOCKS), (case, 1)]) {
        let on =
            Noted { on: Emulated { blocks, ..Emulated::new() }, joins: true, kernels: RefCell::default() };
        Group::<bf16>::new(case).run(&on).expect("the suite runs");
        let kernels = on.kernels.take();
        let count = |pass: &str| kernels.iter().filter(|k| k.starts_with(&format!("kron_{pass}"))).count();
        let joined = case.joined && (blocks == 1 || case.terms.len() > 3);
        let passes = if joined { 1 } else { case.terms.len() };
        assert_eq!((count("down"), count("dx")), (passes, passes), "{blocks} {case:?}");
        let of_terms = [count("up"), count("dy") + count("v_")];
        assert_eq!(of_terms, [case.terms.len(); 2], "{blocks} {case:?}");
        let between = if joined { [2, 1, 1] } else { [0; 3] };
        assert_eq!([count("stack"), count("split"), count("join")], between, "{blocks} {case:?}");
    }
}

#[test]
fn terms_that_are_not_joined_agree_with_the_oracle() {
    for case in GROUPS {
        all(case, &Noted { on: Emulated::new(), joins: false, kernels: RefCell::default() });
    }
}

/// Sizes of random terms of one a_in, or of two.
fn random_shapes(seed: u32) -> (Vec<KronShape>, usize) {
    let word = |i: usize| philox([i as u32 / 4, seed, 1, 2], [3, 4])[i % 4] as usize;
    let (a_in, c_in) = ([1, 2, 3, 4, 16][word(0) % 5], [64, 128, 136, 520, 1024][word(1) % 5]);
    let shape = |k: usize| {
        let (a_out, b_out) = ([1, 2, 4, 16][word(k) % 4], [24, 64, 136, 1024][word(k + 1) % 4]);
        let dims = LayerDims { d_out: a_out * b_out, d_in: a_in * c_in };
        KronShape::kron(dims, Split { a_out, a_in }, [1, 4, 8, 16, 24][word(k + 2) % 5]).expect("legal")
    };
    let terms = 1 + word(2) % 9;
    ((0..terms).map(|k| shape(3 + 3 * k)).collect(), 1 + word(40) % 3000)
}

/// Scratch never falls as the rows grow, and suffices for every dtype.
#[test]
fn the_scratch_of_a_group_suffices() {
    let mut joined = 0;
    for seed in 0..2000 {
        let (shapes, rows) = random_shapes(seed);
        for pass in [Pass::Forward, Pass::Backward { dx: true }] {
            let len = |rows| group_workspace_len(&shapes, pass, rows).expect("legal");
            let enough = len(rows);
            assert!(len(rows / 2) <= enough && len(rows - 1) <= enough, "{shapes:?} {rows}");
            for (dtype, aligned, fewer) in [
                (Dtype::F32, true, rows),
                (Dtype::Bf16, true, rows),
                (Dtype::Bf16, false, rows),
                (Dtype::Bf16, true, rows / 2),
            ] {
                let problem = |&shape: &KronShape| Problem {
                    shape,
                    dtype,
                    pass,
                    rows: fewer,
                    accumulate: true,
                    aligned,
                };
                let alone: Vec<Problem> = shapes.iter().map(problem).collect();
                let of_term = |term: &Problem| match pass {
                    Pass::Forward => *term,
                    _ => Problem { pass: Pass::Backward { dx: false }, accumulate: false, ..*term },
                };
                let terms: Vec<Problem> = alone.iter().map(of_term).collect();
                if let Some(plan) = GroupPlan::new(&alone[0], &terms).expect("legal") {
                    joined += 1;
                    assert!(
                        plan.workspace <= enough,
                        "{} of {enough}: {shapes:?} {fewer} {dtype:?}",
                        plan.workspace
                    );
                }
                for term in &alone {
                    let plan = LaunchPlan::new(term).expect("legal");
                    assert!(plan.workspace <= enough, "{} of {enough}: {term:?}", plan.workspace);
                }
            }
        }
    }
    assert!(joined > 1500, "only {joined} calls were joined");
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let of = |theta: &[f32], shapes: &[(usize, usize)]| {
        let term = |&(d_in, output): &(usize, usize)| DeviceTerm {
            op: kron_core::KronOp::new(
                KronShape::kron(LayerDims { d_out: 16, d_in }, Split { a_out: 2, a_in: 2 }, 2)
                    .expect("legal"),
                kron_core::Scale::new(1.0).expect("finite"),
            ),
            theta: DeviceSlice::host(theta),
            output,
            dropout: None,
        };
        let terms: Vec<_> = shapes.iter().map(term).collect();
        DeviceGroup::new(&terms).map(|group| group.outputs()).map_err(|e| e.to_string())
    };
    let theta = vec![0.0; 4 + 16 + 32];
    assert_eq!(of(&theta, &[(32, 0), (32, 1)]), Ok(2));
    let refused = |shapes: &[(usize, usize)]| of(&theta, shapes).expect_err("refused");
    assert_eq!(refused(&[]), "the group has 0 terms, but it has 1 to 16");
    assert_eq!(refused(&[(32, 0); 17]), "the group has 17 terms, but it has 1 to 16");
    assert!(refused(&[(32, 0), (64, 0)]).contains("d_in"));
    assert!(refused(&[(32, 0), (32, 2)]).contains("output 1 has no term"));
    assert!(of(&theta[1..], &[(32, 0)]).expect_err("refused").contains("theta"));
}
