//! Solves a [`Problem`] in float64, through `kron_core::reference`.

use kron_core::{Element, reference};
use ndarray::{Array2, ArrayView2};

use crate::answer::Answer;
use crate::compare::Results;
use crate::inputs::{Old, Problem};

/// Solves a problem: X̃ = m ⊙ X / (1 − p) takes X's place in every formula,
/// and dX passes through the same mask.
pub fn solve<E: Element>(p: &Problem<E>) -> Answer {
    let s = &p.op.shape;
    let keep = p.keep_scale();
    let mask = Array2::from_shape_fn(p.x.dim(), |(n, k)| if p.keeps(n, k) { keep } else { 0.0 });
    let (x, dy) = (&mask * &widen(p.x.view()), widen(p.dy.view()));
    let c = Array2::from_shape_fn((s.width(), s.c_in()), |(i, k)| f64::from(p.theta.c()[i * s.c_in() + k]));
    let blocks = x.to_shape((p.rows() * s.a_in(), s.c_in())).expect("reshaping is free");
    let grads = reference::backward(&p.op, &p.theta, x.view(), dy.view());
    Answer {
        t: blocks.dot(&c.t()),
        y: reference::forward(&p.op, &p.theta, x.view()),
        dx: mask * grads.dx,
        grad: grads.theta.to_vec(),
    }
}

impl Answer {
    /// Expected outputs of a call that starts from `old`.
    pub fn results<E: Element>(&self, old: &Old<E>) -> Results {
        let grad = self.grad.iter().zip(&old.grad);
        Results {
            t: self.t.iter().copied().collect(),
            y: self.y.iter().copied().collect(),
            y_added: (&self.y + &widen(old.y.view())).into_iter().collect(),
            dx: self.dx.iter().copied().collect(),
            dx_added: (&self.dx + &widen(old.dx.view())).into_iter().collect(),
            grad: grad.map(|(g, &old)| g + f64::from(old)).collect(),
        }
    }
}

/// Converts to float64, exactly.
pub fn widen<E: Element>(m: ArrayView2<E>) -> Array2<f64> {
    m.map(|v| f64::from(v.to_f32()))
}
