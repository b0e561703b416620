//! The suite: what every backend must do, whatever it computes on.

use kron_core::{Cpu, Element, reference};
use ndarray::{Array2, Axis, Slice};

use crate::cases::{self, Case};
use crate::compare::{Measure, Measures};
use crate::engine::Engine;
use crate::inputs::{Old, Problem, uniform};
use crate::notice::notice;
use crate::oracle::widen;
use crate::{call, oracle, same_dtype};

/// The shortest output needs this many numbers before its error means something.
const ENOUGH: usize = 96;

/// Forward and backward of every case agree with the float64 oracle.
///
/// # Panics
/// They do not; every failure is in the message.
pub fn agrees_with_the_oracle<E: Element>(engines: &[impl Engine], cases: &[Case]) {
    let problems = cases.iter().flat_map(|case| case.rows.iter().map(move |&rows| (case, rows)));
    let real = problems.filter(|&(_, rows)| rows > 0);
    let failures: Vec<String> = real.flat_map(|(case, rows)| failures_of::<E>(engines, case, rows)).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Small outputs are pooled over several draws, so that neither side is lucky.
fn failures_of<E: Element>(engines: &[impl Engine], case: &Case, rows: usize) -> Vec<String> {
    let shape = case.shape();
    let mut ours = vec![Measures::default(); engines.len()];
    let mut yardstick = Measures::default();
    let (mut draw, mut pooled) = (0, 0);
    let like = loop {
        let problem = Problem::<E>::of_case(case, rows, draw);
        let answer = oracle::solve(&problem);
        let old = Old::like(&answer, draw);
        let want = answer.results(&old);
        yardstick.add(&shape, &same_dtype::results(&problem, &old), &want);
        for (measures, on) in ours.iter_mut().zip(engines) {
            measures.add(&shape, &call::results(on, &problem, &old), &want);
        }
        draw += 1;
        pooled += want.shortest(&shape).unwrap_or(ENOUGH);
        if pooled >= ENOUGH {
            break want;
        }
    };
    let mut failures = Vec::new();
    for (measures, on) in ours.iter().zip(engines) {
        let place = format!("{} × {rows} rows, {}, {on:?}", case.name, E::DTYPE);
        let found = measures.failures(&yardstick, &shape, &like, E::DTYPE);
        failures.extend(found.into_iter().map(|f| format!("{place}: {f}")));
    }
    failures
}

/// Merging of every case agrees with the materialised ΔW, as a whole and in two bands.
///
/// # Panics
/// It does not.
pub fn merge_agrees_with_the_oracle<E: Element>(on: &impl Engine, cases: &[Case]) {
    for case in cases {
        let p = Problem::<E>::of_case(case, 0, 1);
        let (d_out, d_in) = (p.op.shape.d_out(), p.op.shape.d_in());
        let delta = reference::delta_weight(&p.op, &p.theta);
        let old = uniform::<E>(d_out, d_in, 1.0, 0x77);
        let sum = &delta + &widen(old.view());
        let (mut ours, mut cpu) = ([Measure::default(); 2], [Measure::default(); 2]);
        for band in [0..d_out, 0..d_out / 3, d_out / 3..d_out] {
            let rows = Slice::from(band.clone());
            let part = old.slice_axis(Axis(0), rows).to_owned();
            for (i, (old, want)) in [(None, &delta), (Some(&part), &sum)].into_iter().enumerate() {
                let want: Vec<f64> = want.slice_axis(Axis(0), rows).iter().copied().collect();
                let wide = |w: Array2<E>| w.iter().map(|v| v.to_f32().into()).collect::<Vec<f64>>();
                let (theta, band) = (&p.theta, band.clone());
                ours[i].add(&wide(call::merge(on, &p.op, theta, band.clone(), old, case.pad)), &want);
                cpu[i].add(&wide(call::merge(&Cpu::new(), &p.op, theta, band, old, case.pad)), &want);
            }
        }
        for (i, what) in ["ΔW", "W + ΔW"].into_iter().enumerate() {
            let verdict = ours[i].within(&cpu[i], 2.0, E::DTYPE);
            verdict.unwrap_or_else(|e| panic!("{what} of {}, {}, {on:?}: {e}", case.name, E::DTYPE));
        }
    }
}

/// Three runs of a case have the same bits; a hash of all goes to standard error, to compare machines by.
///
/// # Panics
/// They have not.
pub fn three_runs_have_the_same_bits<E: Element>(on: &impl Engine, cases: &[Case]) {
    let mut hash = FNV_START;
    for case in cases {
        let rows = case.rows.iter().copied().max().unwrap_or(0);
        let problem = Problem::<E>::of_case(case, rows, 1);
        let old = Old::for_problem(&problem, 2);
        let [first, second, third] = [(); 3].map(|()| call::results(on, &problem, &old));
        assert!(first == second && second == third, "{} × {rows} rows, {}, {on:?}", case.name, E::DTYPE);
        for values in [&first.t, &first.y, &first.y_added, &first.dx, &first.dx_added, &first.grad] {
            hash = fnv(hash, call::bits(values));
        }
    }
    notice(format_args!("bits of {} cases, {}, {on:?}: {hash:016x}", cases.len(), E::DTYPE));
}

/// FNV-1a of nothing, 64 bits.
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a of `bytes` after those that `hash` is of.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A call over no rows writes nothing.
///
/// # Panics
/// It does.
pub fn zero_rows_change_nothing(on: &impl Engine) {
    for case in cases::all().iter().filter(|c| c.rows.contains(&0)) {
        let problem = Problem::<f32>::of_case(case, 0, 1);
        let old = Old::for_problem(&problem, 2);
        let results = call::results(on, &problem, &old);
        let kept: Vec<f32> = results.grad.iter().map(|&v| v as f32).collect();
        assert_eq!(call::bits(&kept), call::bits(&old.grad), "{} on {on:?}", case.name);
        assert!(results.y.is_empty() && results.dx_added.is_empty() && results.t.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the hash's authors print.
    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv(FNV_START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(FNV_START, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(fnv(FNV_START, b"foo"), b"bar"), 0x8594_4171_f739_67e8);
    }
}
