//! The oracle itself: ΔW against its definition on numbers that a reader can
//! check, and its gradients against central differences of its own forward.

use kron_core::{KronOp, KronShape, LayerDims, Scale, Split, Theta, reference};
use kron_tests::cases;
use kron_tests::inputs::Problem;
use kron_tests::oracle::widen;
use ndarray::{Array2, array};

/// ΔW = 3·\[1 2; 0 −1\] ⊗ (\[1; 2\]·\[1 10\]), written out.
#[test]
fn delta_weight_is_the_definition() {
    let shape =
        KronShape::kron(LayerDims { d_out: 4, d_in: 4 }, Split { a_out: 2, a_in: 2 }, 1).expect("legal");
    let op = KronOp::new(shape, Scale::new(3.0).expect("finite"));
    let theta = Theta::from_factors(shape, &[1.0, 2.0, 0.0, -1.0], &[1.0, 2.0], &[1.0, 10.0]).expect("sizes");
    let want = array![
        [3.0, 30.0, 6.0, 60.0],
        [6.0, 60.0, 12.0, 120.0],
        [0.0, 0.0, -3.0, -30.0],
        [0.0, 0.0, -6.0, -60.0]
    ];
    assert_eq!(reference::delta_weight(&op, &theta), want);
    let x = array![[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
    assert_eq!(
        reference::forward(&op, &theta, x.view()),
        array![[3.0, 6.0, 0.0, 0.0], [60.0, 120.0, -30.0, -60.0]]
    );
}

/// L = ⟨dY, Y(θ, X)⟩ is linear in X and in each factor alone, so a central
/// difference has no truncation error: what is left is its cancellation,
/// about ε·|L| / h with |L| ≤ ‖dY‖·‖Y‖.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for case in cases::all().iter().filter(|c| c.d_in * c.d_out <= 20_000 && c.rows != [0]) {
        let rows = 3;
        let p = Problem::<f32>::random(case.op(), rows, 5);
        let (x, dy) = (widen(p.x.view()), widen(p.dy.view()));
        let grads = reference::backward(&p.op, &p.theta, x.view(), dy.view());
        let y = reference::forward(&p.op, &p.theta, x.view());
        let loss = |theta: &Theta, x: &Array2<f64>| (&dy * &reference::forward(&p.op, theta, x.view())).sum();
        let size = norm(&dy) * norm(&y);
        assert!(norm(&grads.dx) > 1e-3 * size / norm(&x), "{}: a gradient of ~0", case.name);

        for i in spread(p.op.shape.params()) {
            // θ is float32: a step that both points represent, measured as it was taken.
            let point = |h: f32| {
                let mut theta = p.theta.clone();
                theta.as_mut_slice()[i] += h;
                (f64::from(theta.as_slice()[i]), loss(&theta, &x))
            };
            let ((low, at_low), (high, at_high)) = (point(-0.25), point(0.25));
            let slope = (at_high - at_low) / (high - low);
            let bound = 64.0 * f64::EPSILON * size.max(at_high.abs()) / (high - low);
            let error = (slope - grads.theta[i]).abs();
            assert!(error <= bound, "{}: dθ[{i}] = {}, slope {slope}", case.name, grads.theta[i]);
        }
        for i in spread(x.len()) {
            let at = (i / x.ncols(), i % x.ncols());
            let point = |h: f64| {
                let mut x = x.clone();
                x[at] += h;
                loss(&p.theta, &x)
            };
            let slope = (point(0.5) - point(-0.5)) / 1.0;
            let error = (slope - grads.dx[at]).abs();
            assert!(error <= 64.0 * f64::EPSILON * size, "{}: dX[{at:?}] = {}", case.name, grads.dx[at]);
        }
    }
}

/// At most 24 indices of 0…len, first and last among them.
fn spread(len: usize) -> impl Iterator<Item = usize> {
    let count = len.min(24);
    (0..count).map(move |i| if count == 1 { 0 } else { i * (len - 1) / (count - 1) })
}

fn norm(m: &Array2<f64>) -> f64 {
    m.iter().map(|v| v * v).sum::<f64>().sqrt()
}
