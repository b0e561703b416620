//! The float64 oracle: it materialises ΔW and has one plain loop per formula.
//!
//! It is slow on purpose, for tests and `kron verify`; no hot path may call it.
//!
//! ```
//! use kron_core::{KronOp, KronShape, LayerDims, Scale, Split, Theta, reference};
//! use ndarray::Array2;
//!
//! let layer = LayerDims { d_out: 48, d_in: 70 };
//! let shape = KronShape::kron(layer, Split { a_out: 3, a_in: 7 }, 4)?;
//! let (op, theta) = (KronOp::new(shape, Scale::new(0.5)?), Theta::random(shape, 1));
//! let delta = reference::delta_weight(&op, &theta); // d_out × d_in
//! assert_eq!(delta.dim(), (48, 70));
//!
//! let x = Array2::from_elem((2, 70), 1.0);
//! let y = reference::forward(&op, &theta, x.view());
//! assert_eq!(y, x.dot(&delta.t()));
//! let grads = reference::backward(&op, &theta, x.view(), y.view());
//! assert_eq!(grads.dx, y.dot(&delta));
//! assert_eq!(grads.theta.len(), shape.params());
//! # Ok::<(), kron_core::Error>(())
//! ```

use ndarray::{Array1, Array2, ArrayView2};

use crate::{Inner, KronOp, Theta};

/// Gradients of one layer in float64.
#[derive(Clone, Debug)]
pub struct Grads {
    /// dY·ΔW, n × d_in (masked when the input was).
    pub dx: Array2<f64>,
    /// Gradient of θ, \[dA | dB | dC\].
    pub theta: Array1<f64>,
}

/// Returns the inner factor B·C, or M: b_out × c_in.
pub fn inner(theta: &Theta) -> Array2<f64> {
    let s = theta.shape();
    let c = matrix(theta.c(), s.width(), s.c_in());
    match s.inner() {
        Inner::LowRank(r) => matrix(theta.b(), s.b_out(), r).dot(&c),
        Inner::Full => c,
    }
}

/// Returns ΔW = s·A ⊗ (B·C), or s·A ⊗ M: d_out × d_in.
pub fn delta_weight(op: &KronOp, theta: &Theta) -> Array2<f64> {
    let s = &op.shape;
    let (a, inner) = (matrix(theta.a(), s.a_out(), s.a_in()), inner(theta));
    Array2::from_shape_fn((s.d_out(), s.d_in()), |(o, i)| {
        let (bo, ci) = (s.b_out(), s.c_in());
        f64::from(op.scale.get()) * a[(o / bo, i / ci)] * inner[(o % bo, i % ci)]
    })
}

/// Returns X·ΔWᵀ, n × d_out.
pub fn forward(op: &KronOp, theta: &Theta, x: ArrayView2<f64>) -> Array2<f64> {
    x.dot(&delta_weight(op, theta).t())
}

/// Returns the gradients of ⟨dY, X·ΔWᵀ⟩ in X and θ, through the gradient of ΔW itself:
/// G = dYᵀ·X, dA_ij = s·Σ G_(i·)(j·) ∘ BC, d(BC) = s·Σ_ij A_ij·G_(i·)(j·).
pub fn backward(op: &KronOp, theta: &Theta, x: ArrayView2<f64>, dy: ArrayView2<f64>) -> Grads {
    let s = &op.shape;
    let scale = f64::from(op.scale.get());
    let (a, inner) = (matrix(theta.a(), s.a_out(), s.a_in()), inner(theta));
    let g = dy.t().dot(&x); // [d_out, d_in]
    let mut da = Array2::<f64>::zeros((s.a_out(), s.a_in()));
    let mut dinner = Array2::<f64>::zeros((s.b_out(), s.c_in()));
    for ((o, i), &g) in g.indexed_iter() {
        let (ao, bo) = (o / s.b_out(), o % s.b_out());
        let (ai, ci) = (i / s.c_in(), i % s.c_in());
        da[(ao, ai)] += scale * g * inner[(bo, ci)];
        dinner[(bo, ci)] += scale * g * a[(ao, ai)];
    }
    let mut grad = Vec::with_capacity(s.params());
    if s.a_len() > 0 {
        grad.extend(da.iter());
    }
    match s.inner() {
        Inner::LowRank(r) => {
            let (b, c) = (matrix(theta.b(), s.b_out(), r), matrix(theta.c(), r, s.c_in()));
            grad.extend(dinner.dot(&c.t()).iter());
            grad.extend(b.t().dot(&dinner).iter());
        }
        Inner::Full => grad.extend(dinner.iter()),
    }
    Grads { dx: dy.dot(&delta_weight(op, theta)), theta: grad.into() }
}

fn matrix(data: &[f32], rows: usize, cols: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| f64::from(data[i * cols + j]))
}
