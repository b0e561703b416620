//! Same input, same bits: whatever the number of threads, and from run to run.

use half::{bf16, f16};
use kron_core::{Backend, Cpu, Element, Pass, Team};
use kron_tests::backends;
use kron_tests::call::{self, Dx, bits};
use kron_tests::cases;
use kron_tests::inputs::{Old, Problem};
use rayon::ThreadPoolBuilder;

/// 64 is more than there are partitions, 3 divides none of their numbers.
const THREADS: [usize; 4] = [1, 2, 3, 64];

/// The rows of the table that are cut into several partitions.
const TALL: [&str; 4] = ["paper-tall", "lora-tall", "krona-tall", "dropout-tall"];

#[test]
fn f32_bits_do_not_depend_on_the_threads() {
    run::<f32>();
}

#[test]
fn f16_bits_do_not_depend_on_the_threads() {
    run::<f16>();
}

#[test]
fn bf16_bits_do_not_depend_on_the_threads() {
    run::<bf16>();
}

#[test]
fn bits_do_not_depend_on_the_threads_that_add_the_gradients() {
    compare::<f32>("lora-many-partitions", &[Cpu::new()]);
}

fn run<E: Element>() {
    for name in TALL {
        compare::<E>(name, &backends());
    }
}

fn compare<E: Element>(name: &str, backends: &[Cpu]) {
    let case = cases::case_by_name(name);
    let problem = Problem::<E>::of_case(&case, case.rows[0], 1);
    let old = Old::for_problem(&problem, 2);
    for cpu in backends {
        assert!(is_partitioned(cpu, &problem), "{name} is one partition: nothing to get wrong");
        let want = outputs(cpu, &problem, &old);
        let spawned = Team::Custom(|count, task| {
            std::thread::scope(|scope| (0..count).rev().for_each(|i| drop(scope.spawn(move || task(i)))));
        });
        for team in [Team::Caller, spawned] {
            let got = outputs(&cpu.on(team), &problem, &old);
            assert!(want == got, "{name}, {}, {:?}: {team:?} gives other bits", E::DTYPE, cpu.isa());
        }
        for threads in THREADS {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            for run in ["first", "second"] {
                let got = pool.install(|| outputs(cpu, &problem, &old));
                for ((what, want), (_, got)) in want.iter().zip(&got) {
                    let place = format!("{name}, {}, {:?}, {threads} threads", E::DTYPE, cpu.isa());
                    assert!(want == got, "{place}, {run} run: {what} has other bits");
                }
            }
        }
    }
}

/// The bytes of every output of every pass.
fn outputs<E: Element>(cpu: &Cpu, p: &Problem<E>, old: &Old<E>) -> [(&'static str, Vec<u8>); 6] {
    let bytes = |m: &ndarray::Array2<E>| bits(m.as_slice().expect("standard layout")).to_vec();
    let (y, t) = call::forward(cpu, p, Some(&old.y));
    let (dx, grad) = call::backward(cpu, p, &t, Dx::Add(&old.dx), &old.grad);
    let (none, grad_alone) = call::backward(cpu, p, &t, Dx::Skip, &old.grad);
    assert!(none.is_none());
    let w = call::merge::<E>(cpu, &p.op, &p.theta, 0..p.op.shape.d_out(), None, 0);
    [
        ("Y", bytes(&y)),
        ("T", bits(&t).to_vec()),
        ("dX", dx.map(|m| bytes(&m)).unwrap_or_default()),
        ("the gradient", bits(&grad).to_vec()),
        ("the gradient without dX", bits(&grad_alone).to_vec()),
        ("ΔW", bytes(&w)),
    ]
}

/// Each partition of a backward call has a gradient of its own in the workspace.
fn is_partitioned<E: Element>(cpu: &Cpu, p: &Problem<E>) -> bool {
    let len = |rows| cpu.workspace_len(&p.op, Pass::Backward { dx: true }, rows);
    len(p.rows()) > len(32) + p.op.shape.params()
}
