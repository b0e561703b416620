//! Gradients of every case in cases.toml: y, dx and dθ of the op against burn's autodiff of
//! y = x·W + b + s·x̃·(A ⊗ (B·C))ᵀ with a materialised ΔW, in float64.
//!
//! The bound is three times the error of the same formula in float32, and at least four roundings of the activations'
//! type (a packed factor, an intermediate, the base and the sum), beside the error of burn's own product of the base.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use half::{bf16, f16};
use kron_burn::KronForward;
use kron_core::Element;
use kron_tests::cases::{self, Case};
use kron_tests::inputs::Problem;

use crate::common::{adapter, agree, dtype, layer, run, tensor, values};

#[test]
fn f32_agrees_with_autodiff() {
    all::<f32>();
}

#[test]
fn f16_agrees_with_autodiff() {
    all::<f16>();
}

#[test]
fn bf16_agrees_with_autodiff() {
    all::<bf16>();
}

fn all<E: Element>() {
    for (case, rows) in positive_rows(cases::all()) {
        let p = Problem::<E>::of_case(&case, rows, 3);
        let layer = layer(&p, dtype::<E>(), false, &Device::flex().autodiff());
        let got =
            run(&p, &layer, dtype::<E>(), |layer, x| layer.try_forward_kron(x, p.key).expect("it fits"));
        assert!(!got[2].is_empty() && got[3].is_empty() && got[4].is_empty(), "θ alone is trained");
        agree(&case.name, &p, &got, 4.0);
    }
}

fn positive_rows(cases: Vec<Case>) -> impl Iterator<Item = (Case, usize)> {
    cases.into_iter().flat_map(|case| {
        let rows = case.rows.clone();
        rows.into_iter().filter(|rows| *rows > 0).map(move |rows| (case.clone(), rows))
    })
}

/// A float64 weight is computed by burn's ops: θ in float64, and the gradients exact to its roundings.
#[test]
fn other_dtypes_are_computed_by_burns_ops() {
    for case in cases::few().into_iter().filter(|case| case.dropout == 0.0) {
        let p = Problem::<f32>::of_case(&case, 5, 3);
        let layer = layer(&p, DType::F64, false, &Device::flex().autodiff());
        let got = run(&p, &layer, DType::F64, |layer, x| layer.forward_kron(x));
        agree(&case.name, &p, &got, 1.0);
    }
}

/// A weight and a bias that are trained beside θ have burn's gradients.
#[test]
fn an_unfrozen_base_has_its_gradients() {
    for columns in [false, true] {
        let p = Problem::<f32>::of_case(&cases::case_by_name("paper"), 17, 3);
        let layer = layer(&p, DType::F32, columns, &Device::flex().autodiff()).unfreeze();
        let got = run(&p, &layer, DType::F32, |layer, x| layer.forward_kron(x));
        assert!(got.iter().all(|part| !part.is_empty()));
        agree("an unfrozen base", &p, &got, 4.0);
    }
}

#[test]
fn zero_rows_give_an_empty_output_and_no_gradient() {
    let p = Problem::<f32>::of_case(&cases::case_by_name("paper"), 0, 1);
    let layer = layer(&p, DType::F32, false, &Device::flex().autodiff());
    let x = Tensor::<2>::zeros([0, p.op.shape.d_in()], &Device::flex().autodiff());
    let y = layer.forward_kron(x);
    assert_eq!(y.dims(), [0, p.op.shape.d_out()]);
    let grads = y.sum().backward();
    let grad = adapter(&layer).theta.val().grad(&grads).expect("a gradient of θ");
    assert!(values(grad).iter().all(|g| *g == 0.0));
}

/// x of three axes, of one, and a transposed view give the bits of the plain matrix.
#[test]
fn every_layout_of_x_gives_the_same_bits() {
    let p = Problem::<f32>::of_case(&cases::case_by_name("paper"), 6, 3);
    let (s, device) = (p.op.shape, Device::flex());
    let layer = layer(&p, DType::F32, false, &device);
    let x: Tensor<2> = tensor(p.x.iter().copied(), [6, s.d_in()], DType::F32, &device);
    let want = values(layer.forward_kron(x.clone()));
    let cube = layer.forward_kron(x.clone().reshape([2, 3, s.d_in()]));
    assert_eq!(cube.dims(), [2, 3, s.d_out()]);
    let close = |got: Vec<f64>, want: &[f64]| crate::common::distance(&got, want) < 1e-6;
    assert!(close(values(cube), &want));
    let columns: Tensor<2> = Tensor::from_data(x.clone().transpose().into_data(), &device);
    assert!(close(values(layer.forward_kron(columns.transpose())), &want));
    let swapped = x.clone().reshape([2, 3, s.d_in()]).swap_dims(0, 1);
    let back = layer.forward_kron(swapped).swap_dims(0, 1);
    assert!(close(values(back), &want));
    let backwards = layer.forward_kron(x.clone().flip([0])).flip([0]);
    assert!(close(values(backwards), &want));
    let one = layer.forward_kron(x.narrow(0, 0, 1).reshape([s.d_in()]));
    assert_eq!(one.dims(), [s.d_out()]);
    assert!(close(values(one), &want[..s.d_out()]));
}

/// The loss Σ y·dy is linear in each number of x and θ, so a central difference over a wide step is exact but for the
/// rounding of y: four of float32 for each sum, and a step of 1 that is not divided.
#[test]
fn finite_differences_agree() {
    for name in ["paper", "lora", "krona-pad-dropout", "scale-negative"] {
        let p = Problem::<f32>::of_case(&cases::case_by_name(name), 5, 3);
        let layer = layer(&p, DType::F32, false, &Device::flex().autodiff());
        let got = run(&p, &layer, DType::F32, |layer, x| layer.try_forward_kron(x, p.key).expect("it fits"));
        let loss = |p: &Problem<f32>| {
            let layer = self::layer(p, DType::F32, false, &Device::flex());
            let x = tensor(p.x.iter().copied(), p.x.dim().into(), DType::F32, &Device::flex());
            let y: Tensor<2> = layer.try_forward_kron(x, p.key).expect("it fits");
            let terms = values(y).into_iter().zip(&p.dy).map(|(y, dy)| y * f64::from(*dy));
            terms.fold((0.0, 0.0), |(sum, size): (f64, f64), term| (sum + term, size + term.abs()))
        };
        let check = |what: &str, i: usize, got: f64, moved: &dyn Fn(f32) -> Problem<f32>| {
            let (up, down) = (moved(0.5), moved(-0.5));
            let ((up, up_size), (down, down_size)) = (loss(&up), loss(&down));
            let bound = 4.0 * f64::from(f32::EPSILON) * (up_size + down_size);
            assert!(
                (up - down - got).abs() <= bound,
                "{name}: d{what}[{i}] is {got}, difference {}",
                up - down
            );
        };
        for i in (0..p.op.shape.params()).step_by(p.op.shape.params() / 40 + 1) {
            check("θ", i, got[2][i], &|step| {
                let mut moved = p.clone();
                moved.theta.as_mut_slice()[i] += step;
                moved
            });
        }
        for i in (0..p.x.len()).step_by(p.x.len() / 40 + 1) {
            check("x", i, got[1][i], &|step| {
                let mut moved = p.clone();
                *moved.x.iter_mut().nth(i).expect("inside") += step;
                moved
            });
        }
    }
}
