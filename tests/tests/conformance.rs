//! Every case × dtype × instruction set against the float64 oracle, with the
//! tolerances of `kron_tests::compare`, and every illegal call refused.

use half::{bf16, f16};
use kron_core::Element;
use kron_tests::cases::{self, Case};
use kron_tests::compare::Measures;
use kron_tests::inputs::{Old, Problem};
use kron_tests::{backends, call, oracle, plain};

/// The shortest output needs this many numbers before its error means something.
const ENOUGH: usize = 96;

#[test]
fn f32_agrees_with_the_oracle() {
    run::<f32>();
}

#[test]
fn f16_agrees_with_the_oracle() {
    run::<f16>();
}

#[test]
fn bf16_agrees_with_the_oracle() {
    run::<bf16>();
}

#[test]
fn zero_rows_change_nothing() {
    for case in cases::all().iter().filter(|c| c.rows.contains(&0)) {
        let problem = Problem::<f32>::of_case(case, 0, 1);
        let old = Old::for_problem(&problem, 2);
        for cpu in backends() {
            let results = call::results(&cpu, &problem, &old);
            let kept: Vec<f32> = results.grad.iter().map(|&v| v as f32).collect();
            assert_eq!(call::bits(&kept), call::bits(&old.grad), "{} on {:?}", case.name, cpu.isa());
            assert!(results.y.is_empty() && results.dx_added.is_empty() && results.t.is_empty());
        }
    }
}

fn run<E: Element>() {
    let mut failures = Vec::new();
    for case in cases::all() {
        for &rows in case.rows.iter().filter(|&&rows| rows > 0) {
            failures.extend(failures_of::<E>(&case, rows));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Small outputs are pooled over several draws, so that neither side is lucky.
fn failures_of<E: Element>(case: &Case, rows: usize) -> Vec<String> {
    let shape = case.shape();
    let backends = backends();
    let mut ours = vec![Measures::default(); backends.len()];
    let mut yardstick = Measures::default();
    let (mut draw, mut pooled) = (0, 0);
    let like = loop {
        let problem = Problem::<E>::of_case(case, rows, draw);
        let answer = oracle::solve(&problem);
        let old = Old::like(&answer, draw);
        let want = answer.results(&old);
        yardstick.add(&shape, &plain::results(&problem, &old), &want);
        for (measures, cpu) in ours.iter_mut().zip(&backends) {
            measures.add(&shape, &call::results(cpu, &problem, &old), &want);
        }
        draw += 1;
        pooled += want.shortest(&shape).unwrap_or(ENOUGH);
        if pooled >= ENOUGH {
            break want;
        }
    };
    let check = |(measures, cpu): (&Measures, &kron_core::Cpu)| {
        let failures = measures.failures(&yardstick, &shape, &like, E::DTYPE);
        let place = format!("{} × {rows} rows, {}, {:?}", case.name, E::DTYPE, cpu.isa());
        failures.into_iter().map(move |f| format!("{place}: {f}")).collect::<Vec<_>>()
    };
    ours.iter().zip(&backends).flat_map(check).collect()
}
