//! The adapter by burn's own ops, on every backend and float dtype.
//!
//! ```text
//! T = X·Cᵀ   U = A·T   Y = s·U·Bᵀ                  ΔWᵀ = s·Aᵀ ⊗ (B·C)ᵀ
//! ```

use burn::tensor::{DType, Tensor};
use kron_core::{Inner, KronOp, Outer};

/// Factors of an adapter as tensors: A is a_out × a_in, B is b_out × r and absent in a full inner factor, C is r × c_in.
struct Factors {
    a: Option<Tensor<2>>,
    b: Option<Tensor<2>>,
    c: Tensor<2>,
}

fn factors(theta: Tensor<1>, op: &KronOp, dtype: DType) -> Factors {
    let (s, theta) = (op.shape, theta.cast(dtype));
    let part = |start: usize, rows: usize, columns: usize| {
        theta.clone().narrow(0, start, rows * columns).reshape([rows, columns])
    };
    Factors {
        a: (s.outer() == Outer::Trained).then(|| part(0, s.a_out(), s.a_in())),
        b: (s.inner() != Inner::Full).then(|| part(s.a_len(), s.b_out(), s.width())),
        c: part(s.a_len() + s.b_len(), s.width(), s.c_in()),
    }
}

/// Computes the adapter's output s·A·(X·Cᵀ)·Bᵀ, n × d_out, of X, n × d_in with n > 0.
pub(crate) fn output(x: Tensor<2>, theta: Tensor<1>, op: &KronOp) -> Tensor<2> {
    let (s, n, Factors { a, b, c }) = (op.shape, x.dims()[0], factors(theta, op, x.dtype()));
    let t = x.reshape([n * s.a_in(), s.c_in()]).matmul(c.transpose()); // [n × a_in, r]
    let u = match a {
        Some(a) => {
            a.unsqueeze().matmul(t.reshape([n, s.a_in(), s.width()])).reshape([n * s.a_out(), s.width()])
        }
        None => t,
    };
    let y = match b {
        Some(b) => u.matmul(b.transpose()),
        None => u,
    };
    y.reshape([n, s.d_out()]).mul_scalar(op.scale.get())
}

/// Computes ΔWᵀ, d_in × d_out.
pub(crate) fn delta(theta: Tensor<1>, op: &KronOp, dtype: DType) -> Tensor<2> {
    let (s, Factors { a, b, c }) = (op.shape, factors(theta, op, dtype));
    let m = match b {
        Some(b) => c.transpose().matmul(b.transpose()),
        None => c.transpose(),
    }; // [c_in, b_out]
    let delta = match a {
        Some(a) => {
            let (a, m) =
                (a.transpose().reshape([s.a_in(), 1, s.a_out(), 1]), m.reshape([1, s.c_in(), 1, s.b_out()]));
            (a * m).reshape([s.d_in(), s.d_out()])
        }
        None => m,
    };
    delta.mul_scalar(op.scale.get())
}
