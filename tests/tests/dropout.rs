//! X̃ = m ⊙ X / (1 − p) enters the adapter, forward and backward through the
//! same m, and m is what `Dropout::keeps` says, element by element.
//!
//! Identity factors carry the mask to where it can be seen: with C = I, T is X̃.

use half::{bf16, f16};
use kron_core::{
    Dropout, DropoutKey, Dtype, Element, KronOp, KronShape, LayerDims, PER_BLOCK, Scale, Split, Theta, philox,
};
use kron_tests::call::{self, Dx, bits};
use kron_tests::inputs::{Old, Problem};
use kron_tests::{backends, cases};
use ndarray::Array2;

const KEY: DropoutKey = DropoutKey { seed: 0xdead_beef_0bad_cafe, offset: 0x1_0000_0003 };

/// (a_in, c_in): one element, less than a Philox block, one block, blocks that
/// start inside a Philox block, and more columns than are masked at a time.
const WIDTHS: [(usize, usize); 7] = [(1, 1), (1, 7), (1, 8), (5, 9), (3, 37), (2, 150), (1, 301)];

fn op(shape: KronShape, p: f32) -> KronOp {
    let scale = Scale::new(1.0).expect("finite");
    KronOp::new(shape, scale).with_dropout(Dropout::new(p).expect("legal"))
}

/// X = 1 and dY = 1 on an adapter of given factors.
fn ones<E: Element>(op: KronOp, theta: Theta, rows: usize, key: Option<DropoutKey>) -> Problem<E> {
    let one = |cols| Array2::from_elem((rows, cols), E::from_f32(1.0));
    let (x, dy) = (one(op.shape.d_in()), one(op.shape.d_out()));
    Problem { op, theta, key, x, dy, pad: 1 }
}

fn identity(n: usize) -> Vec<f32> {
    (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect()
}

/// C = I of rank c_in, so that T = X̃; A = 1 … 1.
fn x_in_t<E: Element>(p: f32, (a_in, c_in): (usize, usize), rows: usize, key: DropoutKey) -> Problem<E> {
    let shape = KronShape::kron(LayerDims { d_out: 2, d_in: a_in * c_in }, Split { a_out: 2, a_in }, c_in)
        .expect("legal");
    let theta = Theta::from_factors(shape, &vec![1.0; 2 * a_in], &vec![1.0; c_in], &identity(c_in));
    ones(op(shape, p), theta.expect("sizes"), rows, Some(key))
}

/// Checks an n × d_in matrix of X̃ for X = 1 against `keeps`.
fn is_the_mask(x: &[f32], p: &Problem<impl Element>, dtype: Dtype, what: &str) {
    let (d_in, keep) = (p.op.shape.d_in(), p.keep_scale());
    for (i, &got) in x.iter().enumerate() {
        let want = if p.keeps(i / d_in, i % d_in) { keep } else { 0.0 };
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= 2.0 * dtype.unit_roundoff() * want,
            "{what}, {dtype}: X̃[{}, {}] is {got}, not {want}",
            i / d_in,
            i % d_in
        );
    }
}

/// The definition in the documentation, written a second time.
#[test]
fn the_mask_is_the_documented_one() {
    for (d_in, p) in [(1usize, 0.5f32), (7, 0.1), (37, 0.25), (301, 0.9)] {
        let dropout = Dropout::new(p).expect("legal");
        let threshold = (f64::from(p) * 65536.0).round() as u32;
        for (row, col) in (0..40).flat_map(|row| (0..d_in).map(move |col| (row, col))) {
            let block = (row * d_in.div_ceil(PER_BLOCK) + col / PER_BLOCK) as u64;
            let counter = [block as u32, (block >> 32) as u32, KEY.offset as u32, (KEY.offset >> 32) as u32];
            let words = philox(counter, [KEY.seed as u32, (KEY.seed >> 32) as u32]);
            let bits: Vec<u32> = words.iter().flat_map(|w| [w & 0xffff, w >> 16]).collect();
            let want = bits[col % PER_BLOCK] >= threshold;
            assert_eq!(dropout.keeps(KEY, d_in, row, col), want, "({row}, {col}) of {d_in}");
        }
    }
}

#[test]
fn forward_uses_the_mask() {
    forward_mask::<f32>();
    forward_mask::<f16>();
    forward_mask::<bf16>();
}

fn forward_mask<E: Element>() {
    for (p, width) in [0.1, 0.5, 0.9].into_iter().flat_map(|p| WIDTHS.map(|w| (p, w))) {
        let problem = x_in_t::<E>(p, width, 70, KEY);
        for cpu in backends() {
            let (_, t) = call::forward(&cpu, &problem, None);
            is_the_mask(&t, &problem, E::DTYPE, &format!("T of {width:?} at p {p}, {:?}", cpu.isa()));
        }
    }
}

/// B = I and dY = I make dT = I, so that dC is X̃ itself, and with C = 1 dX is
/// the mask that it passes back through.
#[test]
fn backward_uses_the_same_mask() {
    backward_mask::<f32>();
    backward_mask::<f16>();
    backward_mask::<bf16>();
}

fn backward_mask<E: Element>() {
    let rows = 70;
    for (p, d_in) in [0.1, 0.5, 0.9].into_iter().flat_map(|p| [1, 7, 37, 301].map(|d| (p, d))) {
        let shape = KronShape::lora(LayerDims { d_out: rows, d_in }, rows).expect("legal");
        let theta = Theta::from_factors(shape, &[], &identity(rows), &vec![1.0; rows * d_in]);
        let mut problem = ones::<E>(op(shape, p), theta.expect("sizes"), rows, Some(KEY));
        let eye = Array2::from_shape_vec((rows, rows), identity(rows)).expect("square");
        problem.dy = eye.mapv(E::from_f32);
        for cpu in backends() {
            let (_, t) = call::forward(&cpu, &problem, None);
            let (dx, grad) = call::backward(&cpu, &problem, &t, Dx::Replace, &vec![0.0; shape.params()]);
            let place = format!("d_in {d_in} at p {p}, {:?}", cpu.isa());
            is_the_mask(&grad[shape.b_len()..], &problem, E::DTYPE, &format!("dC of {place}"));
            let dx: Vec<f32> = dx.expect("asked for").iter().map(|v| v.to_f32()).collect();
            is_the_mask(&dx, &problem, E::DTYPE, &format!("dX of {place}"));
        }
    }
}

/// Of N independent elements X̃/X is 1 on average, give or take √(p/(1−p)/N);
/// five times that is passed by chance once in two million keys, and these are fixed.
#[test]
fn the_mean_is_preserved() {
    for p in [0.1f32, 0.25, 0.5, 0.9] {
        let problem = x_in_t::<f32>(p, (1, 301), 200, KEY);
        let n = problem.x.len() as f64;
        for cpu in backends() {
            let (_, t) = call::forward(&cpu, &problem, None);
            let mean = t.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let sigma = (f64::from(p / (1.0 - p)) / n).sqrt();
            assert!((mean - 1.0).abs() <= 5.0 * sigma, "p {p}: the mean of X̃ is {mean}, σ {sigma:.1e}");
        }
    }
}

/// Two masks of p = ½ differ in half of their elements, ± √(1/4N); so do the
/// masks of neighbouring rows.
#[test]
fn another_key_is_another_mask() {
    let keys = [
        KEY,
        DropoutKey { seed: KEY.seed + 1, ..KEY },
        DropoutKey { seed: KEY.seed ^ 1 << 63, ..KEY },
        DropoutKey { offset: KEY.offset + 1, ..KEY },
        DropoutKey { offset: KEY.offset ^ 1 << 63, ..KEY },
    ];
    let masks = keys.map(|key| {
        let problem = x_in_t::<f32>(0.5, (1, 301), 64, key);
        let (_, t) = call::forward(&kron_core::Cpu::new(), &problem, None);
        t.iter().map(|&v| v != 0.0).collect::<Vec<bool>>()
    });
    let independent = |a: &[bool], b: &[bool], what: &str| {
        let n = a.len() as f64;
        let differ = a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / n;
        assert!((differ - 0.5).abs() <= 5.0 * (0.25 / n).sqrt(), "{what} differ in {differ}");
    };
    for (i, a) in masks.iter().enumerate() {
        independent(&a[301..], &a[..a.len() - 301], &format!("neighbouring rows of {:?}", keys[i]));
        for (j, b) in masks.iter().enumerate().skip(i + 1) {
            independent(a, b, &format!("{:?} and {:?}", keys[i], keys[j]));
        }
    }
}

/// p = 0 with a key, and any p without a key, give the bits of a call without dropout.
#[test]
fn no_probability_or_no_key_is_no_dropout() {
    no_dropout::<f32>();
    no_dropout::<f16>();
    no_dropout::<bf16>();
}

fn no_dropout<E: Element>() {
    for name in ["paper", "lora", "krona"] {
        let plain = Problem::<E>::of_case(&cases::case_by_name(name), 17, 1);
        let mut zero = plain.clone();
        zero.op = plain.op.with_dropout(Dropout::new(0.0).expect("legal"));
        zero.key = Some(KEY);
        let mut evaluation = plain.clone();
        evaluation.op = plain.op.with_dropout(Dropout::new(0.5).expect("legal"));
        let mut training = evaluation.clone();
        training.key = Some(KEY);
        let old = Old::for_problem(&plain, 2);
        for cpu in backends() {
            let run = |p: &Problem<E>| {
                let (y, t) = call::forward(&cpu, p, Some(&old.y));
                let (dx, grad) = call::backward(&cpu, p, &t, Dx::Add(&old.dx), &old.grad);
                let dx = dx.expect("asked for");
                let bytes = |m: &Array2<E>| bits(m.as_slice().expect("standard layout")).to_vec();
                [bytes(&y), bits(&t).to_vec(), bytes(&dx), bits(&grad).to_vec()]
            };
            let want = run(&plain);
            assert!(run(&zero) == want, "{name}, {}, {:?}: p = 0 changes bits", E::DTYPE, cpu.isa());
            assert!(run(&evaluation) == want, "{name}, {}, {:?}: evaluation drops", E::DTYPE, cpu.isa());
            let differ = run(&training).iter().zip(&want).all(|(a, b)| a != b);
            assert!(differ, "{name}, {}, {:?}: training drops nothing", E::DTYPE, cpu.isa());
        }
    }
}
