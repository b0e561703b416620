//! Sizes near the integers' limits: every constructor and every function of sizes returns an error or a
//! value, and none overflows, which this profile checks.

use kron_adapter::algebra::{Delta, Fit, Join};
use kron_adapter::limits::{Budget, made_bytes, size, work};
use kron_adapter::plan::{Linear, fit_split, peft_factorization};
use kron_adapter::{ScaleRule, Scaling};
use kron_core::{
    Backend, Cpu, Dropout, Dtype, Inner, KronOp, KronShape, LayerDims, Outer, Pass, Scale, Split,
};
use kron_kernels::{LaunchPlan, Problem, workspace_len};
use proptest::prelude::*;

/// Small numbers, powers of two and their neighbours, products of a few primes, and any others.
fn huge() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..40usize,
        (0..64u32, -1..=1i64).prop_map(|(power, by)| (1usize << power).wrapping_add_signed(by as isize)),
        (0..40u32, 0..20u32)
            .prop_map(|(two, three)| 2usize.wrapping_pow(two).wrapping_mul(3usize.wrapping_pow(three))),
        any::<usize>(),
    ]
}

/// Sides of the factors, with which a legal shape is likely, or the layer's own.
fn shapes() -> impl Strategy<Value = kron_core::Result<KronShape>> {
    let inner =
        (any::<bool>(), huge()).prop_map(|(full, r)| if full { Inner::Full } else { Inner::LowRank(r) });
    (any::<bool>(), any::<bool>(), [huge(), huge(), huge(), huge()], inner).prop_map(
        |(divides, one, [a_out, a_in, m, n], inner)| {
            let (a_out, a_in) = if one { (1, 1) } else { (a_out, a_in) };
            let (d_out, d_in) = match divides {
                true => (a_out.wrapping_mul(m), a_in.wrapping_mul(n)),
                false => (m, n),
            };
            let outer = if one { Outer::One } else { Outer::Trained };
            KronShape::new(LayerDims { d_out, d_in }, Split { a_out, a_in }, outer, inner)
        },
    )
}

fn passes() -> [Pass; 4] {
    [Pass::Forward, Pass::Backward { dx: true }, Pass::Backward { dx: false }, Pass::Merge]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn shapes_and_their_sizes(shape in shapes(), other in shapes(), rows in huge(), p in 0..2u8) {
        let (Ok(shape), Ok(other)) = (shape, other) else { return Ok(()) };
        prop_assert!(shape.params() <= 4 * KronShape::MAX_ELEMENTS && shape.max_rank() > 0);
        let dropout = Dropout::new(f32::from(p) / 4.0).expect("legal");
        let op = KronOp::new(shape, Scale::new(1.5).expect("finite")).with_dropout(dropout);
        prop_assert!(op.t_len(rows) >= rows);
        for pass in passes() {
            for cpu in kron_tests::backends() {
                prop_assert!(cpu.workspace_len(&op, pass, rows) > 0, "{pass:?}");
            }
            for (dtype, aligned) in [(Dtype::F32, false), (Dtype::F16, true), (Dtype::Bf16, true)] {
                let problem = Problem { shape, dtype, pass, rows, accumulate: true, aligned };
                if let Ok(plan) = LaunchPlan::new(&problem) {
                    prop_assert!(plan.workspace < isize::MAX as usize, "{plan}");
                }
            }
            let _ = workspace_len(shape, pass, rows);
        }
        for join in [Join::Up, Join::Down, Join::smaller(&shape)] {
            prop_assert!(join.rank(&shape) > 0);
        }
        prop_assert!(Delta::singular_cost(&shape).work > 0);
        prop_assert!(Delta::inner_cost(&shape, &other).work > 0);
        let _ = Fit::cost(&shape, Split { a_out: rows, a_in: rows }, shape.width());
    }

    #[test]
    fn constructors_and_numbers(a in huge(), b in huge(), c in huge(), alpha: f32) {
        for shape in [
            KronShape::lora(LayerDims { d_out: a, d_in: b }, c),
            KronShape::krona(LayerDims { d_out: a, d_in: b }, Split { a_out: c, a_in: c }),
            KronShape::kron(LayerDims { d_out: a, d_in: b }, Split { a_out: c, a_in: b }, a),
        ] {
            if let Err(error) = shape {
                prop_assert!(!error.to_string().is_empty());
            }
        }
        for rule in [ScaleRule::AlphaOverR, ScaleRule::AlphaOverSqrtR] {
            prop_assert!(Scaling::new(alpha, a, rule).is_ok_and(|s| s.scale().get().is_finite())
                || Scaling::new(alpha, a, rule).is_err());
        }
        let _ = (Linear::new("q", LayerDims { d_out: a, d_in: b }, 1), size(a as u128 * b as u128));
        let file = a as u64;
        prop_assert!(made_bytes(file) >= file && work(file) >= file);
        for mut budget in [Budget::bytes(file), Budget::work(file).with_limit(c as u64)] {
            for amount in [a as u128, u128::MAX - b as u128, b as u128 * c as u128] {
                let left = budget.left();
                let spent = budget.spend("a layer", amount);
                prop_assert_eq!(spent.is_ok(), amount <= u128::from(left));
                prop_assert_eq!(budget.left(), if spent.is_ok() { left - amount as u64 } else { left });
            }
        }
    }

    /// A search for divisors takes as many steps as the root of a side.
    #[test]
    fn splits(a in huge(), b in huge(), wanted in huge(), other in huge()) {
        let (a, b) = (a % (1 << 24), b % (1 << 24));
        let inner = Inner::LowRank(other);
        let _ = fit_split(Split { a_out: wanted, a_in: other }, LayerDims { d_out: a, d_in: b }, inner);
        for factor in [None, Some(wanted)] {
            let (first, second) = peft_factorization(a, factor);
            prop_assert_eq!(first * second, a);
        }
    }
}

/// Most of the drawn shapes are refused; those that are not are many, and some are near the limit.
#[test]
fn the_drawn_shapes_reach_the_limit() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut legal, mut near) = (0, 0);
    for _ in 0..5000 {
        if let Ok(shape) = shapes().new_tree(&mut runner).expect("a shape").current() {
            legal += 1;
            near += usize::from(shape.params() > KronShape::MAX_ELEMENTS / 64);
        }
    }
    assert!(legal > 200 && near > 20, "{legal} legal, {near} near the limit");
    let cpu = Cpu::new();
    let shape = KronShape::lora(LayerDims { d_out: 3, d_in: 5 }, 2).expect("legal");
    let op = KronOp::new(shape, Scale::new(1.0).expect("finite"));
    assert!(cpu.workspace_len(&op, Pass::Forward, usize::MAX) < 1 << 20, "rows cost no memory");
}
