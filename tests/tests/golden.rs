//! The cases that PEFT wrote, through the backend directly: every output on
//! every instruction set within 2× (gradients 3×) PEFT's own error against the
//! float64 reference, in guarded buffers.

use std::path::Path;

use kron_adapter::with_dtype;
use kron_cli::verify::{Case, Index, Outputs, Quantity, W1};
use kron_core::{Cpu, Element, Theta};
use kron_tests::call::{self, Dx};
use kron_tests::compare::Measure;
use kron_tests::inputs::Problem;
use kron_tests::{backends, oracle::widen};
use ndarray::Array2;

#[test]
fn every_case_is_as_exact_as_peft() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let index = Index::read(&dir).expect("the golden index");
    let cases: Vec<Case> =
        index.cases.iter().map(|entry| Case::read(&dir, entry).unwrap_or_else(|e| panic!("{e}"))).collect();
    let mut failures = Vec::new();
    for cpu in backends() {
        for case in &cases {
            let ours = with_dtype!(case.dtype, E => outputs::<E>(&cpu, case));
            let failed = compare(case, &ours).into_iter();
            failures.extend(failed.map(|f| format!("{} on {:?}: {f}", case.name, cpu.isa())));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The outputs that are out of bounds.
fn compare(case: &Case, ours: &Outputs) -> Vec<String> {
    let peft = &case.frameworks["peft"];
    assert!(peft.len() >= 7, "{}: PEFT wrote only {} results", case.name, peft.len());
    let check = |(q, theirs): (&Quantity, &Vec<f64>)| {
        let (mut our_error, mut their_error) = (Measure::default(), Measure::default());
        our_error.add(&ours[q], &case.reference[q]);
        their_error.add(theirs, &case.reference[q]);
        let factor = if q.is_gradient() { 3.0 } else { 2.0 };
        let outcome = our_error.within(&their_error, factor, case.dtype);
        outcome.err().map(|e| format!("{}: {e}", q.name()))
    };
    peft.iter().filter_map(check).collect()
}

/// Our results, by the names that the file has for them.
fn outputs<E: Element>(cpu: &Cpu, case: &Case) -> Outputs {
    let s = case.op.shape;
    let single = |m: &Array2<f64>| m.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let a = match &case.w1 {
        W1::Full(a) => a.clone(),
        W1::Product(left, right) => left.dot(right),
    };
    let b = case.b.as_ref().map(single).unwrap_or_default();
    let p = Problem::<E> {
        op: case.op,
        theta: Theta::from_factors(s, &single(&a), &b, &single(&case.c)).expect("factors of the shape"),
        key: None,
        x: narrow(&case.x),
        dy: narrow(&case.dy),
        pad: 3,
    };
    let (y0, dx0) = bases(case);
    let (delta, t) = call::forward(cpu, &p, None);
    let (y, _) = call::forward(cpu, &p, Some(&narrow(&y0)));
    let old = vec![0.0; s.params()];
    let (dx_delta, grad) = call::backward(cpu, &p, &t, Dx::Replace, &old);
    let (dx, _) = call::backward(cpu, &p, &t, Dx::Add(&narrow(&dx0)), &old);
    let merged: Vec<Array2<E>> = case
        .sampled_rows()
        .into_iter()
        .map(|o| {
            let row = Array2::from_shape_fn((1, s.d_in()), |(_, i)| weight(o, i));
            call::merge(cpu, &p.op, &p.theta, o..o + 1, Some(&narrow(&row)), p.pad)
        })
        .collect();

    let wide = |m: &Array2<E>| widen(m.view()).into_iter().collect::<Vec<_>>();
    let mut out = Outputs::from([
        (Quantity::Y, wide(&y)),
        (Quantity::Delta, wide(&delta)),
        (Quantity::Dx, wide(&dx.expect("asked for"))),
        (Quantity::DxDelta, wide(&dx_delta.expect("asked for"))),
        (Quantity::Merged, merged.iter().flat_map(wide).collect()),
    ]);
    let (da, rest) = grad.split_at(s.a_len());
    let (db, dc) = rest.split_at(s.b_len());
    let double = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    match &case.w1 {
        W1::Full(_) => {
            out.insert(Quantity::A, double(da));
        }
        W1::Product(left, right) => {
            let da = Array2::from_shape_vec(a.dim(), double(da)).expect("dA is a_out × a_in");
            out.insert(Quantity::W1a, da.dot(&right.t()).into_iter().collect());
            out.insert(Quantity::W1b, left.t().dot(&da).into_iter().collect());
        }
    }
    if case.b.is_some() {
        out.insert(Quantity::B, double(db));
        out.insert(Quantity::C, double(dc));
    } else {
        out.insert(Quantity::M, double(dc));
    }
    out
}

/// The frozen layer of the golden files, and its bias.
fn weight(o: usize, i: usize) -> f64 {
    (((131 * o + 71 * i) % 257) as f64 - 128.0) / 4096.0
}

fn bias(o: usize) -> f64 {
    (((37 * o) % 257) as f64 - 128.0) / 256.0
}

/// The frozen layer's y and dx.
fn bases(case: &Case) -> (Array2<f64>, Array2<f64>) {
    let w = Array2::from_shape_fn((case.dy.ncols(), case.x.ncols()), |(o, i)| weight(o, i));
    let mut y = case.x.dot(&w.t());
    if case.bias {
        y.indexed_iter_mut().for_each(|((_, o), y)| *y += bias(o));
    }
    (y, case.dy.dot(&w))
}

fn narrow<E: Element>(m: &Array2<f64>) -> Array2<E> {
    m.map(|&v| E::from_f32(v as f32))
}
