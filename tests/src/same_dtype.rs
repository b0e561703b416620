//! The yardstick of every tolerance: the same problem by unfused products, as
//! a framework computes it in the activations' dtype.
//!
//! Operands, θ included, are rounded to the dtype; every product is one float32
//! sum in index order, a multiply and an add at a time, so that the yardstick is
//! the same on every machine; every intermediate (X̃, T, U, s·dY, dU, dT, ΔY) is rounded to the
//! dtype before the next step reads it. θ's gradients stay float32.

use kron_core::{Element, Inner};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::compare::Results;
use crate::inputs::{Old, Problem};

/// Every output of a problem whose outputs start as `old`.
pub fn results<E: Element>(p: &Problem<E>, old: &Old<E>) -> Results {
    let s = &p.op.shape;
    let (n, r, scale) = (p.rows(), s.width(), p.op.scale.get());
    let (a_in, a_out) = (s.a_in(), s.a_out());
    let a = rounded::<E>(p.theta.a(), a_out, a_in); // [a_out, a_in]
    let c = rounded::<E>(p.theta.c(), r, s.c_in()); // [r, c_in]
    let b = match s.inner() {
        Inner::LowRank(_) => Some(rounded::<E>(p.theta.b(), s.b_out(), r)), // [b_out, r]
        Inner::Full => None,
    };

    let keep = p.keep_scale() as f32;
    let x = Array2::from_shape_fn(p.x.dim(), |(i, k)| {
        if p.keeps(i, k) { round::<E>(keep * p.x[(i, k)].to_f32()) } else { 0.0 }
    });
    let x = reshape(x, n * a_in, s.c_in());
    let t = product(x.view(), c.t()).mapv_into(round::<E>); // [n·a_in, r]
    let u = per_row(a.view(), &t, n).mapv_into(round::<E>); // [n·a_out, r]
    let delta = b.as_ref().map_or_else(|| u.clone(), |b| product(u.view(), b.t()).mapv_into(round::<E>));
    let delta = reshape(delta.mapv_into(|v| round::<E>(scale * v)), n, s.d_out());

    let dy = reshape(p.dy.mapv(|v| round::<E>(scale * v.to_f32())), n * a_out, s.b_out());
    let du = b.as_ref().map_or_else(|| dy.clone(), |b| product(dy.view(), b.view()).mapv_into(round::<E>)); // [n·a_out, r]
    let dt = per_row(a.t(), &du, n).mapv_into(round::<E>); // [n·a_in, r]
    let keep_or_drop = |(i, k)| if p.keeps(i, k) { keep } else { 0.0 };
    let dx = reshape(product(dt.view(), c.view()).mapv_into(round::<E>), n, s.d_in());
    let dx = Array2::from_shape_fn(dx.dim(), |at| round::<E>(keep_or_drop(at) * dx[at]));

    let mut grad = Vec::with_capacity(s.params());
    if s.a_len() > 0 {
        let mut da = Array2::<f32>::zeros((a_out, a_in));
        for (du, t) in du.exact_chunks((a_out, r)).into_iter().zip(t.exact_chunks((a_in, r))) {
            add_product(da.view_mut(), du, t.t());
        }
        grad.extend(da);
    }
    if b.is_some() {
        grad.extend(product(dy.t(), u.view()));
    }
    grad.extend(product(dt.t(), x.view()));

    Results {
        t: t.iter().map(|&v| v.into()).collect(),
        y_added: added(&old.y, &delta),
        y: delta.iter().map(|&v| v.into()).collect(),
        dx_added: added(&old.dx, &dx),
        dx: dx.iter().map(|&v| v.into()).collect(),
        grad: grad.iter().zip(&old.grad).map(|(g, old)| f64::from(g + old)).collect(),
    }
}

/// For each of `n` tokens, `a` times that token's block of `m`.
fn per_row(a: ArrayView2<f32>, m: &Array2<f32>, n: usize) -> Array2<f32> {
    let (out, cols) = (a.nrows(), m.ncols());
    let mut product = Array2::zeros((n * out, cols));
    for (y, x) in product.exact_chunks_mut((out, cols)).into_iter().zip(m.exact_chunks((a.ncols(), cols))) {
        add_product(y, a, x);
    }
    product
}

fn product(a: ArrayView2<f32>, b: ArrayView2<f32>) -> Array2<f32> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    add_product(out.view_mut(), a, b);
    out
}

fn add_product(mut out: ArrayViewMut2<f32>, a: ArrayView2<f32>, b: ArrayView2<f32>) {
    let b = b.as_standard_layout();
    for (mut out, a) in out.rows_mut().into_iter().zip(a.rows()) {
        for (a, b) in a.iter().zip(b.rows()) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

fn added<E: Element>(old: &Array2<E>, delta: &Array2<f32>) -> Vec<f64> {
    old.iter().zip(delta).map(|(old, d)| round::<E>(old.to_f32() + d).into()).collect()
}

fn reshape(m: Array2<f32>, rows: usize, cols: usize) -> Array2<f32> {
    m.to_shape((rows, cols)).expect("reshaping is free").into_owned()
}

fn rounded<E: Element>(values: &[f32], rows: usize, cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| round::<E>(values[i * cols + j]))
}

fn round<E: Element>(v: f32) -> f32 {
    E::from_f32(v).to_f32()
}
