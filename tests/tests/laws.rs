//! Laws that hold for every legal shape, drawn at random.
//!
//! Where a law is algebra, the operands are small integers and both sides are
//! equal bit for bit; where it is about rounding, the bound is the rounding.

use half::{bf16, f16};
use kron_core::{
    Dropout, DropoutKey, Element, Inner, KronOp, KronShape, LayerDims, Outer, Scale, Split, Theta, reference,
};
use kron_tests::call::{self, Dx, bits};
use kron_tests::exact::{self, dot, dot_slices, integers};
use kron_tests::inputs::{Old, Problem};
use kron_tests::oracle::widen;
use kron_tests::{backends, guard::Matrix};
use ndarray::{Array2, s};
use proptest::prelude::*;

/// Any of the three adapters; layers of up to 320 columns.
fn shapes() -> impl Strategy<Value = KronShape> {
    let factor = || 1..=8usize;
    let inner = || 1..=40usize;
    (factor(), factor(), inner(), inner(), 1..=20usize, 0..4u8).prop_map(
        |(a_out, a_in, b_out, c_in, r, kind)| {
            let layer = LayerDims { d_out: a_out * b_out, d_in: a_in * c_in };
            let shape = match kind {
                0 => KronShape::lora(LayerDims { d_out: b_out, d_in: c_in }, r),
                1 => KronShape::krona(layer, Split { a_out, a_in }),
                _ => KronShape::kron(layer, Split { a_out, a_in }, r),
            };
            shape.expect("drawn to be legal")
        },
    )
}

/// Scales in which integers stay exact; never 1, which hides a scale that is forgotten.
fn scales() -> impl Strategy<Value = Scale> {
    prop::sample::select(vec![0.5f32, 2.0, -3.0, 0.25]).prop_map(|s| Scale::new(s).expect("finite"))
}

fn ops() -> impl Strategy<Value = KronOp> {
    (shapes(), scales()).prop_map(|(shape, scale)| KronOp::new(shape, scale))
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// K(x + 2·x') = K x + 2·K x', and the same for T.
    #[test]
    fn forward_is_linear_in_x(op in ops(), rows in 0..40usize, seed: u64) {
        let (p, q) = (exact::problem(op, rows, seed), exact::problem(op, rows, seed ^ 1));
        let mut sum = p.clone();
        sum.x = &p.x + &(2.0 * &q.x);
        for cpu in backends() {
            let other = Problem { theta: p.theta.clone(), ..q.clone() };
            let ((y, t), (z, u)) = (call::forward(&cpu, &p, None), call::forward(&cpu, &other, None));
            let (both, both_t) = call::forward(&cpu, &sum, None);
            prop_assert_eq!(both, y + 2.0 * z);
            prop_assert!(both_t.iter().zip(t.iter().zip(&u)).all(|(both, (t, u))| *both == t + 2.0 * u));
        }
    }

    /// ⟨dY, K x⟩ = ⟨Kᵀ dY, x⟩, and because Y is linear in each factor also
    /// ⟨dA, A⟩ = ⟨dB, B⟩ = ⟨dC, C⟩; with and without a mask.
    #[test]
    fn backward_is_the_transpose_of_forward(op in ops(), rows in 0..40usize, seed: u64, masked: bool) {
        let mut p = exact::problem(op, rows, seed);
        if masked {
            // One half, because it multiplies by 2, exactly.
            p.op = op.with_dropout(Dropout::new(0.5).expect("legal"));
            p.key = Some(DropoutKey { seed, offset: !seed });
        }
        let s = op.shape;
        for cpu in backends() {
            let (y, t) = call::forward(&cpu, &p, None);
            let (dx, grad) = call::backward(&cpu, &p, &t, Dx::Replace, &vec![0.0; s.params()]);
            let want = dot(p.dy.view(), y.view());
            prop_assert_eq!(dot(dx.expect("asked for").view(), p.x.view()), want);
            let (da, rest) = grad.split_at(s.a_len());
            let (db, dc) = rest.split_at(s.b_len());
            if s.outer() == Outer::Trained {
                prop_assert_eq!(dot_slices(da, p.theta.a()), want);
            }
            if let Inner::LowRank(_) = s.inner() {
                prop_assert_eq!(dot_slices(db, p.theta.b()), want);
            }
            prop_assert_eq!(dot_slices(dc, p.theta.c()), want);
        }
    }

    /// (A'⊗M')·(A⊗M) = (A'A)⊗(M'M): two adapters in a row are one.
    #[test]
    fn mixed_product(
        (a, b, c) in (1..=5usize, 1..=5usize, 1..=5usize),
        (p, q, r) in (1..=20usize, 1..=20usize, 1..=20usize),
        rank in prop::option::of(1..4usize), rows in 1..20usize, seed: u64,
    ) {
        let shape = |a_out, a_in, b_out, c_in, rank: Option<usize>| {
            let inner = rank.map_or(Inner::Full, Inner::LowRank);
            KronShape::new(LayerDims { d_out: a_out * b_out, d_in: a_in * c_in }, Split { a_out, a_in }, Outer::Trained, inner).expect("legal")
        };
        let (first, second, both) = (shape(b, c, q, r, rank), shape(a, b, p, q, rank), shape(a, c, p, r, rank));
        let (one, scale) = (Scale::new(1.0).expect("finite"), Scale::new(-3.0).expect("finite"));
        let x = exact::problem(KronOp::new(first, one), rows, seed);
        let theta = exact::theta(second, seed ^ 2);
        let matrix = |v: &[f32], m, n| Array2::from_shape_vec((m, n), v.to_vec()).expect("sizes");
        let outer = matrix(theta.a(), a, b).dot(&matrix(x.theta.a(), b, c));
        let product = match rank {
            None => Theta::from_factors(both, &vec(&outer), &[], &vec(
                &matrix(theta.c(), p, q).dot(&matrix(x.theta.c(), q, r)))),
            Some(k) => Theta::from_factors(both, &vec(&outer), theta.b(), &vec(
                &matrix(theta.c(), k, q).dot(&matrix(x.theta.b(), q, k)).dot(&matrix(x.theta.c(), k, r)))),
        }
        .expect("sizes");
        for cpu in backends() {
            let (between, _) = call::forward(&cpu, &x, None);
            let then = Problem { op: KronOp::new(second, scale), theta: theta.clone(), x: between, ..x.clone() };
            let at_once = Problem {
                op: KronOp::new(both, scale), theta: product.clone(), ..x.clone()
            };
            prop_assert_eq!(call::forward(&cpu, &then, None).0, call::forward(&cpu, &at_once, None).0);
        }
    }

    /// X·Wᵀ + Y = X·(merged W)ᵀ = X·(W + ΔW)ᵀ, with a scale that is not 1.
    #[test]
    fn forward_is_merged_is_materialised(op in ops(), rows in 1..20usize, seed: u64) {
        let (s, p) = (op.shape, exact::problem(op, rows, seed));
        let w: Array2<f32> = integers(s.d_out(), s.d_in(), seed ^ 3);
        let (x, wide_w) = (widen(p.x.view()), widen(w.view()));
        let want = x.dot(&(&wide_w + &reference::delta_weight(&op, &p.theta)).t());
        for cpu in backends() {
            let (y, _) = call::forward(&cpu, &p, None);
            prop_assert_eq!(&(x.dot(&wide_w.t()) + widen(y.view())), &want);
            let merged = call::merge(&cpu, &op, &p.theta, 0..s.d_out(), Some(&w), p.pad);
            prop_assert_eq!(&x.dot(&widen(merged.view()).t()), &want);
        }
    }

    /// The merged weight is W + ΔW rounded once, whole or in bands; a replaced one is ΔW.
    #[test]
    fn merge_rounds_once(op in ops(), seed: u64, cut in 0.0..1.0f64) {
        merged::<f32>(&op, seed, cut)?;
        merged::<f16>(&op, seed, cut)?;
        merged::<bf16>(&op, seed, cut)?;
    }

    /// B = 0 (or M = 0): Y keeps its bits, whatever its dtype.
    #[test]
    fn zero_b_is_the_identity(op in ops(), rows in 1..20usize, seed: u64) {
        identity::<f32>(op, rows, seed)?;
        identity::<f16>(op, rows, seed)?;
        identity::<bf16>(op, rows, seed)?;
    }

    /// Adding is replacing, plus what was there: exact on integers.
    #[test]
    fn add_is_replace_plus_old(op in ops(), rows in 1..40usize, seed: u64) {
        let p = exact::problem(op, rows, seed);
        let old: Old<f32> = Old {
            y: integers(rows, op.shape.d_out(), seed ^ 4),
            dx: integers(rows, op.shape.d_in(), seed ^ 5),
            grad: vec(&integers(1, op.shape.params(), seed ^ 6)),
        };
        for cpu in backends() {
            let (y, t) = call::forward(&cpu, &p, None);
            prop_assert_eq!(call::forward(&cpu, &p, Some(&old.y)).0, &y + &old.y);
            let (dx, grad) = call::backward(&cpu, &p, &t, Dx::Replace, &vec![0.0; old.grad.len()]);
            let (dx_added, grad_added) = call::backward(&cpu, &p, &t, Dx::Add(&old.dx), &old.grad);
            prop_assert_eq!(dx_added.expect("asked for"), dx.expect("asked for") + &old.dx);
            prop_assert!(grad_added.iter().zip(grad.iter().zip(&old.grad)).all(|(sum, (g, o))| *sum == g + o));
        }
    }

    /// The same in half precision: the sum is rounded, and the replaced output was.
    #[test]
    fn add_is_replace_plus_old_up_to_rounding(op in ops(), rows in 1..20usize, seed: u64) {
        add_rounds::<f16>(op, rows, seed)?;
        add_rounds::<bf16>(op, rows, seed)?;
    }

    /// LoRA is a_out = a_in = 1 with A = [1]: the same bits, in every output.
    #[test]
    fn lora_is_a_one_by_one_kron(d_out in 1..150usize, d_in in 1..150usize, r in 1..20usize, rows in 1..40usize, seed: u64) {
        one_by_one::<f32>(d_out, d_in, r, rows, seed)?;
        one_by_one::<bf16>(d_out, d_in, r, rows, seed)?;
    }

    /// A⊗(B·C) = (A⊗B)·(I⊗C): every Kron-LoRA is a LoRA of rank a_in·r.
    #[test]
    fn every_kron_is_a_lora(
        (a_out, a_in, r) in (1..=6usize, 1..=6usize, 1..=12usize),
        (b_out, c_in) in (1..=30usize, 1..=30usize),
        scale in scales(), rows in 1..20usize, seed: u64,
    ) {
        let shape = KronShape::kron(LayerDims { d_out: a_out * b_out, d_in: a_in * c_in }, Split { a_out, a_in }, r).expect("legal");
        let p = exact::problem(KronOp::new(shape, scale), rows, seed);
        let rank = a_in * r;
        let (a, b, c) = (p.theta.a(), p.theta.b(), p.theta.c());
        let up = Array2::from_shape_fn((shape.d_out(), rank), |(o, k)| {
            a[o / b_out * a_in + k / r] * b[o % b_out * r + k % r]
        });
        let down = Array2::from_shape_fn((rank, shape.d_in()), |(k, i)| {
            if k / r == i / c_in { c[k % r * c_in + i % c_in] } else { 0.0 }
        });
        let lora = KronShape::lora(LayerDims { d_out: shape.d_out(), d_in: shape.d_in() }, rank).expect("legal");
        let theta = Theta::from_factors(lora, &[], &vec(&up), &vec(&down)).expect("sizes");
        let q = Problem { op: KronOp::new(lora, scale), theta, ..p.clone() };
        for cpu in backends() {
            let ((y, t), (z, u)) = (call::forward(&cpu, &p, None), call::forward(&cpu, &q, None));
            prop_assert_eq!(y, z);
            prop_assert_eq!(&t, &u, "T is the LoRA's down projection");
            let (dx, _) = call::backward(&cpu, &p, &t, Dx::Replace, &vec![0.0; shape.params()]);
            let (dz, _) = call::backward(&cpu, &q, &u, Dx::Replace, &vec![0.0; lora.params()]);
            prop_assert_eq!(dx, dz);
        }
    }

    /// A token's Y, T and dX depend on no other token: a NaN stays in its row.
    #[test]
    fn tokens_are_independent(op in ops(), rows in 2..40usize, seed: u64, victim in 0..1000usize) {
        stays_in_its_row::<f32>(op, rows, seed, victim)?;
        stays_in_its_row::<f16>(op, rows, seed, victim)?;
        stays_in_its_row::<bf16>(op, rows, seed, victim)?;
    }
}

fn merged<E: Element>(op: &KronOp, seed: u64, cut: f64) -> Result<(), TestCaseError> {
    let s = &op.shape;
    let theta = exact::theta(*s, seed);
    // More bits than bf16 and f16 keep once ΔW is added, but exact before.
    let w: Array2<E> = integers::<E>(s.d_out(), s.d_in(), seed ^ 7).map(|v| E::from_f32(50.0 * v.to_f32()));
    let delta = reference::delta_weight(op, &theta);
    let rounded = |m: Array2<f64>| m.map(|&v| E::from_f32(v as f32));
    let (sum, alone) = (rounded(&widen(w.view()) + &delta), rounded(delta));
    let band = (cut * (s.d_out() + 1) as f64) as usize;
    for cpu in backends() {
        for range in [0..s.d_out(), 0..band, band..s.d_out()] {
            let old = w.slice(s![range.clone(), ..]).to_owned();
            let got = call::merge(&cpu, op, &theta, range.clone(), Some(&old), 2);
            prop_assert_eq!(
                widen(got.view()),
                widen(sum.slice(s![range.clone(), ..])),
                "{} {:?}",
                E::DTYPE,
                range
            );
            let got = call::merge::<E>(&cpu, op, &theta, range.clone(), None, 0);
            prop_assert_eq!(
                widen(got.view()),
                widen(alone.slice(s![range.clone(), ..])),
                "{} {:?}",
                E::DTYPE,
                range
            );
        }
    }
    Ok(())
}

fn identity<E: Element>(op: KronOp, rows: usize, seed: u64) -> Result<(), TestCaseError> {
    let mut p = Problem::<E>::random(op, rows, seed);
    p.theta = Theta::init(op.shape, seed);
    let old = Old::for_problem(&p, seed ^ 8);
    let before = Matrix::output(&old.y, 0);
    for cpu in backends() {
        let after = Matrix::output(&call::forward(&cpu, &p, Some(&old.y)).0, 0);
        prop_assert_eq!(before.bytes(), after.bytes(), "{} on {:?}", E::DTYPE, cpu.isa());
    }
    Ok(())
}

fn add_rounds<E: Element>(op: KronOp, rows: usize, seed: u64) -> Result<(), TestCaseError> {
    let p = Problem::<E>::random(op, rows, seed);
    let old = Old::for_problem(&p, seed ^ 9);
    // f16 has no relative precision below 2⁻¹⁴; float32's own roundings are far smaller.
    let (u, tiny) = (1.01 * E::DTYPE.unit_roundoff(), (-25f64).exp2());
    for cpu in backends() {
        let (y, t) = call::forward(&cpu, &p, None);
        let (y_added, _) = call::forward(&cpu, &p, Some(&old.y));
        let zero = vec![0.0; op.shape.params()];
        let (dx, _) = call::backward(&cpu, &p, &t, Dx::Replace, &zero);
        let (dx_added, _) = call::backward(&cpu, &p, &t, Dx::Add(&old.dx), &zero);
        let (dx, dx_added) = (dx.expect("asked for"), dx_added.expect("asked for"));
        for (new, old, sum) in [(&y, &old.y, &y_added), (&dx, &old.dx, &dx_added)] {
            for ((new, old), sum) in widen(new.view()).iter().zip(widen(old.view())).zip(widen(sum.view())) {
                let bound = u * (new.abs() + (new + old).abs()) + tiny;
                prop_assert!((sum - (new + old)).abs() <= bound, "{}: {new} + {old} gave {sum}", E::DTYPE);
            }
        }
    }
    Ok(())
}

fn one_by_one<E: Element>(
    d_out: usize,
    d_in: usize,
    r: usize,
    rows: usize,
    seed: u64,
) -> Result<(), TestCaseError> {
    let scale = Scale::new(1.7).expect("finite");
    let (lora, kron) = (
        KronShape::lora(LayerDims { d_out, d_in }, r),
        KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 1, a_in: 1 }, r),
    );
    let (lora, kron) = (lora.expect("legal"), kron.expect("legal"));
    let p = Problem::<E>::random(KronOp::new(lora, scale), rows, seed);
    let theta = Theta::from_factors(kron, &[1.0], p.theta.b(), p.theta.c()).expect("sizes");
    let q = Problem { op: KronOp::new(kron, scale), theta, ..p.clone() };
    for cpu in backends() {
        let ((y, t), (z, u)) = (call::forward(&cpu, &p, None), call::forward(&cpu, &q, None));
        prop_assert_eq!(widen(y.view()), widen(z.view()));
        prop_assert_eq!(bits(&t), bits(&u));
        let (dx, grad) = call::backward(&cpu, &p, &t, Dx::Replace, &vec![0.0; lora.params()]);
        let (dz, grad_kron) = call::backward(&cpu, &q, &u, Dx::Replace, &vec![0.0; kron.params()]);
        prop_assert_eq!(dx.map(|m| widen(m.view())), dz.map(|m| widen(m.view())));
        prop_assert_eq!(bits(&grad), bits(&grad_kron[1..]));
    }
    Ok(())
}

fn stays_in_its_row<E: Element>(
    op: KronOp,
    rows: usize,
    seed: u64,
    victim: usize,
) -> Result<(), TestCaseError> {
    let clean = Problem::<E>::random(op, rows, seed);
    let mut hurt = clean.clone();
    let (row, nan) = (victim % rows, E::from_f32(f32::NAN));
    hurt.x[(row, victim % op.shape.d_in())] = nan;
    hurt.dy[(row, victim % op.shape.d_out())] = nan;
    let zero = vec![0.0; op.shape.params()];
    for cpu in backends() {
        let run = |p: &Problem<E>| {
            let (y, t) = call::forward(&cpu, p, None);
            let (dx, _) = call::backward(&cpu, p, &t, Dx::Replace, &zero);
            let t = Array2::from_shape_vec((rows, t.len() / rows), t).expect("rows × a_in·r");
            [widen(y.view()), widen(dx.expect("asked for").view()), widen(t.view())]
        };
        for (clean, hurt) in run(&clean).into_iter().zip(run(&hurt)) {
            for (i, (clean, hurt)) in clean.rows().into_iter().zip(hurt.rows()).enumerate() {
                prop_assert!(i == row || clean == hurt, "row {i} saw the NaN of row {row}");
                prop_assert!(i != row || hurt.iter().any(|v| v.is_nan()), "row {row} lost its NaN");
            }
        }
    }
    Ok(())
}

fn vec(m: &Array2<f32>) -> Vec<f32> {
    m.iter().copied().collect()
}
