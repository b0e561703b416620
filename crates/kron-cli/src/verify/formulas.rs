//! The formulas of a case, generic over the float type.
//! In float64 they check the stored reference; in float32 they are the plain computation, made of
//! matrix products and temporaries.
//!
//! ```text
//! forward    T = X·Cᵀ        U = A·T        delta = s·U·Bᵀ
//! backward   dU = s·dY·B     dB = s·dYᵀ·U   dT = Aᵀ·dU   dA = Σ dU·Tᵀ   dC = dTᵀ·X   dX = dT·C
//! ```

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Axis, LinalgScalar};

use super::base;
use super::case::{Case, W1};
use super::quantity::{Outputs, Quantity};

/// Float type of the computation.
pub trait Real: LinalgScalar + Into<f64> {
    /// Rounds to nearest.
    fn of(v: f64) -> Self;
}

impl Real for f32 {
    fn of(v: f64) -> Self {
        v as f32
    }
}

impl Real for f64 {
    fn of(v: f64) -> Self {
        v
    }
}

/// Computes every output of a case. `finish` rounds an output to the layer's dtype, or returns it
/// unchanged: first the base layer's output, then its sum with the adapter's.
pub fn solve<F: Real>(case: &Case, finish: impl Fn(f64) -> f64) -> Outputs {
    let shape = case.shape();
    let s = F::of(case.scale);
    let x = blocks::<F>(&case.x, shape.c_in()); // [n·a_in, c_in]
    let dy = blocks::<F>(&case.dy, shape.b_out()); // [n·a_out, b_out]
    let c = case.c.mapv(F::of); // [w, c_in]
    let b = case.b.as_ref().map(|b| b.mapv(F::of)); // [b_out, w], the identity when none
    let a = outer::<F>(&case.w1); // [a_out, a_in]

    let t = x.dot(&c.t()); // [n·a_in, w]
    let u = per_token(a.view(), &t); // [n·a_out, w]
    let delta = s_times(s, b.as_ref().map_or_else(|| u.clone(), |b| u.dot(&b.t()))); // [n·a_out, b_out]
    let du = s_times(s, b.as_ref().map_or_else(|| dy.clone(), |b| dy.dot(b))); // [n·a_out, w]
    let dt = per_token(a.t(), &du); // [n·a_in, w]
    let mut da = Array2::zeros(a.dim());
    let tokens = du.axis_chunks_iter(Axis(0), a.nrows()).zip(t.axis_chunks_iter(Axis(0), a.ncols()));
    tokens.for_each(|(du, t)| general_mat_mul(F::one(), &du, &t.t(), F::one(), &mut da));
    let dc = dt.t().dot(&x); // [w, c_in]
    let dx = dt.dot(&c); // [n·a_in, c_in]

    let mut out = Outputs::new();
    if let W1::Product(w1_a, w1_b) = &case.w1 {
        out.insert(Quantity::W1a, wide(da.dot(&w1_b.mapv(F::of).t())));
        out.insert(Quantity::W1b, wide(w1_a.mapv(F::of).t().dot(&da)));
    }
    out.insert(Quantity::A, wide(da));
    match &b {
        Some(_) => {
            out.insert(Quantity::B, wide(s_times(s, dy.t().dot(&u))));
            out.insert(Quantity::C, wide(dc));
        }
        None => {
            out.insert(Quantity::M, wide(dc));
        }
    }
    let (y0, dx0) = bases(case);
    for (alone, whole, base, values) in
        [(Quantity::Delta, Quantity::Y, y0, wide(delta)), (Quantity::DxDelta, Quantity::Dx, dx0, wide(dx))]
    {
        let sum = base.iter().zip(&values).map(|(&base, v)| finish(finish(base) + v)).collect();
        out.insert(whole, sum);
        out.insert(alone, values.into_iter().map(&finish).collect());
    }
    out.insert(Quantity::Merged, merged(case, &a, b.as_ref(), &c, s).into_iter().map(&finish).collect());
    out
}

/// Returns A, multiplied out in F when it is stored as a product.
fn outer<F: Real>(w1: &W1) -> Array2<F> {
    match w1 {
        W1::Full(a) => a.mapv(F::of),
        W1::Product(w1_a, w1_b) => w1_a.mapv(F::of).dot(&w1_b.mapv(F::of)),
    }
}

/// Returns the base layer's y and dx in float64, as they are not under test.
pub fn bases(case: &Case) -> (Array2<f64>, Array2<f64>) {
    let shape = case.shape();
    (base::forward(case.x.view(), shape.d_out(), case.bias), base::backward(case.dy.view(), shape.d_in()))
}

/// Returns the sampled rows of W + s·A ⊗ (B·C).
fn merged<F: Real>(case: &Case, a: &Array2<F>, b: Option<&Array2<F>>, c: &Array2<F>, s: F) -> Vec<f64> {
    let (b_out, c_in) = (case.shape().b_out(), case.shape().c_in());
    let row = |o: usize| {
        let inner = b.map_or_else(|| c.row(o % b_out).to_owned(), |b| b.row(o % b_out).dot(c)); // [c_in]
        let weight = move |i: usize| {
            let delta: f64 = (s * (a[(o / b_out, i / c_in)] * inner[i % c_in])).into();
            base::weight(o, i) + delta
        };
        (0..case.shape().d_in()).map(weight).collect::<Vec<_>>()
    };
    case.sampled_rows().into_iter().flat_map(row).collect()
}

/// Reshapes n × (blocks·width) to rows of `width`.
fn blocks<F: Real>(x: &Array2<f64>, width: usize) -> Array2<F> {
    let values = x.iter().map(|&v| F::of(v)).collect();
    Array2::from_shape_vec((x.len() / width, width), values).unwrap_or_else(|_| Array2::zeros((0, width)))
}

/// Multiplies each token's block of `t` by `m` from the left.
fn per_token<F: Real>(m: ArrayView2<F>, t: &Array2<F>) -> Array2<F> {
    let (rows, cols) = m.dim();
    let mut u = Array2::zeros((t.nrows() / cols * rows, t.ncols()));
    let tokens = u.axis_chunks_iter_mut(Axis(0), rows).zip(t.axis_chunks_iter(Axis(0), cols));
    tokens.for_each(|(mut u, t)| general_mat_mul(F::one(), &m, &t, F::zero(), &mut u));
    u
}

fn s_times<F: Real>(s: F, m: Array2<F>) -> Array2<F> {
    m.mapv_into(|v| s * v)
}

fn wide<F: Real>(m: Array2<F>) -> Vec<f64> {
    m.into_iter().map(Into::into).collect()
}
