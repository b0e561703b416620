//! burn's own `forward`, `materialize` and gradients through W + ΔW.

use burn::module::Module;
use burn::tensor::{DType, Device};
use half::{bf16, f16};
use kron_core::{Element, reference};
use kron_tests::cases;
use kron_tests::inputs::Problem;

use crate::common::{agree, base, distance, dtype, layer, run, values};

/// Half precision rounds W + ΔW once more than the op's four roundings, and dW as often as autodiff's product.
#[test]
fn forward_and_its_gradients_agree_with_autodiff() {
    fn on<E: Element>(roundings: f64) {
        for case in cases::all().into_iter().filter(|case| case.dropout == 0.0) {
            for columns in [false, true] {
                let p = Problem::<E>::of_case(&case, 7, 3);
                let layer = layer(&p, dtype::<E>(), columns, &Device::flex().autodiff());
                let got = run(&p, &layer, dtype::<E>(), |layer, x| layer.forward(x));
                assert!(!got[2].is_empty() && got[3].is_empty());
                agree(&case.name, &p, &got, roundings);
            }
        }
    }
    on::<f32>(4.0);
    on::<f16>(6.0);
    on::<bf16>(6.0);
}

/// A float64 weight is merged by burn's ops.
#[test]
fn other_dtypes_are_merged_by_burns_ops() {
    for case in cases::few().into_iter().filter(|case| case.dropout == 0.0) {
        let p = Problem::<f32>::of_case(&case, 5, 3);
        let layer = layer(&p, DType::F64, false, &Device::flex().autodiff());
        agree(&case.name, &p, &run(&p, &layer, DType::F64, |layer, x| layer.forward(x)), 1.0);
    }
}

/// `materialize` is W + ΔWᵀ of the oracle, rounded once, whatever the layout of W.
#[test]
fn materialize_merges() {
    fn on<E: Element>() {
        for case in cases::few() {
            for columns in [false, true] {
                let p = Problem::<E>::of_case(&case, 1, 3);
                let device = Device::flex().autodiff();
                let merged = layer(&p, dtype::<E>(), columns, &device).valid().materialize();
                assert!(merged.weight.reparameterization::<kron_burn::KronAdapter>().is_none());
                let (weight, _) = base(&p, dtype::<E>(), dtype::<E>(), columns, &device.inner());
                let delta = reference::delta_weight(&p.op, &p.theta);
                let want: Vec<f64> = values(weight).iter().zip(delta.t()).map(|(w, d)| w + d).collect();
                let error = distance(&values(merged.weight.val()), &want);
                assert!(error < 4.0 * E::DTYPE.unit_roundoff(), "{}, {}: {error:.1e}", case.name, E::DTYPE);
            }
        }
    }
    on::<f32>();
    on::<f16>();
    on::<bf16>();
}
