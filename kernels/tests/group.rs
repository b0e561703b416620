//! Calls over a group on the emulator: against the oracle, and what a joined call reads.

mod common;

use std::cell::RefCell;

use common::group::{GROUPS, Group, GroupCase, check, check_run};
use half::{bf16, f16};
use kron_core::{Dtype, KronShape, LayerDims, Pass, Result, Split, philox};
use kron_kernels::params::KronParams;
use kron_kernels::plan::BLOCKS;
use kron_kernels::{
    Async, DeviceGroup, DeviceSlice, DeviceTerm, Emulated, GroupPlan, LaunchPlan, Launcher, Problem,
    Schedule, Step, StreamHandle, group_workspace_len,
};

/// On a GPU of one multiprocessor, where launches cost little beside X.
#[test]
fn fifo_joined_calls_agree_with_the_oracle() {
    for case in GROUPS {
        let on = Emulated { blocks: 1, ..Emulated::new() };
        check::<f32>(case, &on);
        check::<f16>(case, &on);
        check::<bf16>(case, &on);
    }
}

/// On a large GPU, where few of these calls are joined, and those in slices of c_in.
#[test]
fn fifo_calls_with_many_blocks_agree_with_the_oracle() {
    for case in GROUPS {
        check::<f32>(case, &Emulated::new());
        check::<bf16>(case, &Emulated::new());
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

/// A call that is not joined has the bits of `Cuda::forward` and `Cuda::backward`.
#[test]
fn other_groups_have_the_bits_of_single_calls() {
    let adds = |case: &GroupCase| case.accumulate && case.terms.len() != 4;
    for case in GROUPS.into_iter().filter(adds) {
        let group = Group::<bf16>::new(case);
        let one_by_one = group.clone().run_one_by_one(&Emulated::new()).expect("the suite runs");
        assert!(group.run(&Emulated::new()).expect("the suite runs").bits() == one_by_one.bits(), "{case:?}");
    }
}

#[test]
fn without_dx_the_rest_agrees_with_the_oracle() {
    for (case, blocks) in GROUPS.into_iter().flat_map(|case| [(case, BLOCKS), (case, 1)]) {
        let on = Emulated { blocks, ..Emulated::new() };
        check_run::<bf16>(case, |group| Group { without_dx: true, ..group }.run(&on));
        check_run::<f32>(case, |group| Group { without_dx: true, ..group }.run(&on));
    }
}

/// Without rows a call writes nothing.
#[test]
fn zero_rows_change_nothing() {
    for case in GROUPS {
        let group = Group::<bf16>::new(GroupCase { rows: 0, ..case });
        let before = group.bits();
        assert!(group.run(&Emulated::new()).expect("the suite runs").bits() == before, "{case:?}");
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused_with_the_numbers() {
    let case = GROUPS[0];
    let refused = |change: &dyn Fn(&mut Group<bf16>)| {
        let mut group = Group::<bf16>::new(case);
        change(&mut group);
        group.run(&Emulated::new()).expect_err("a buffer does not fit").to_string()
    };
    let t = refused(&|group| group.t.truncate(group.t.len() - 1));
    assert!(t.starts_with("t has 3359 elements"), "{t}");
    let ys = refused(&|group| drop(group.ys.pop()));
    assert!(ys.contains("ys") && ys.contains("the group has 3 outputs"), "{ys}");
    let dys = refused(&|group| drop(group.dys.pop()));
    assert!(dys.contains("dys") && dys.contains("the group has 3 outputs"), "{dys}");
    let grads = refused(&|group| drop(group.grads.pop()));
    assert!(grads.contains("grads") && grads.contains("the group has 3 terms"), "{grads}");
    let grad = refused(&|group| group.grads[1].truncate(1));
    assert!(grad.contains("grad has"), "{grad}");
    for short in [[1, 0], [0, 1]] {
        let workspace = refused(&|group| group.short = short);
        assert!(workspace.starts_with("workspace has"), "{workspace}");
    }
}

/// Scratch that is too short is refused before the first term of a call that computes one after the other.
#[test]
fn a_refused_call_queues_nothing() {
    for case in GROUPS {
        let on = Noted { on: Emulated::new(), joins: false, kernels: RefCell::default() };
        let group = Group { short: [1, 0], ..Group::<bf16>::new(case) };
        let lacks = group.run(&on).is_err_and(|e| e.to_string().starts_with("workspace has"));
        assert!(lacks && on.kernels.borrow().is_empty(), "{case:?}");
    }
}

/// Terms of other sizes, and passes that have no group, are not joined, whatever they say.
#[test]
fn plans_take_any_problems() {
    let term = |d_in, rows, pass| Problem {
        shape: KronShape::kron(LayerDims { d_out: 256, d_in }, Split { a_out: 4, a_in: 2 }, 8)
            .expect("legal"),
        dtype: Dtype::Bf16,
        pass,
        rows,
        accumulate: true,
        aligned: true,
    };
    let x = term(512, 4096, Pass::Backward { dx: true });
    let plan = |terms: &[Problem]| GroupPlan::new(&x, terms).expect("legal");
    let of_term = term(512, 4096, Pass::Backward { dx: false });
    assert!(plan(&[of_term; 3]).is_some());
    assert_eq!(
        plan(&[of_term; 3]),
        plan(&[term(512, 0, Pass::Merge); 3]),
        "the call has the rows and the pass"
    );
    assert_eq!(plan(&[of_term, term(1024, 4096, Pass::Forward)]), None);
    assert_eq!((plan(&[]), plan(&[of_term]), plan(&[of_term; 8])), (None, None, None));
    assert_eq!(GroupPlan::new(&term(512, 4096, Pass::Merge), &[of_term; 3]).expect("legal"), None);
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
        let on = Noted { on: Emulated::new(), joins: false, kernels: RefCell::default() };
        check::<f32>(case, &on);
        check::<f16>(case, &on);
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
    let (shapes, rows) = random_shapes(7);
    for pass in [Pass::Forward, Pass::Backward { dx: true }, Pass::Merge] {
        let alone = kron_kernels::workspace_len(shapes[0], pass, rows).expect("legal");
        assert_eq!(group_workspace_len(&shapes[..1], pass, rows).expect("legal"), alone);
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
