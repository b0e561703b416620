//! Calls of a backend through guarded buffers: each returns the outputs after
//! it has checked that nothing else was written.
//!
//! A replacing call gets buffers of exactly the length that the backend asks
//! for, an adding one longer ones, whose tails must survive.

use kron_core::{Accum, Backend, Backward, Element, Forward, KronOp, Merge, Pass, Theta};
use ndarray::Array2;

use crate::compare::Results;
use crate::engine::Engine;
use crate::guard::{Guarded, Matrix};
use crate::inputs::{Old, Problem};

/// Elements that an adding call gets beyond what it needs.
const TAIL: usize = 5;

/// Use of dX in a backward call.
#[derive(Clone, Copy, Debug)]
pub enum Dx<'a, E> {
    /// Not compute it.
    Skip,
    /// Overwrite NaNs.
    Replace,
    /// Add to this.
    Add(&'a Array2<E>),
}

/// Every output of a problem, each in both modes, whose old contents are `old`.
///
/// # Panics
/// A call that fails or writes what it must not; gradients that depend on what is done about dX.
pub fn results<E: Element>(on: &impl Engine, p: &Problem<E>, old: &Old<E>) -> Results {
    let (y, t) = forward(on, p, None);
    let (y_added, t_again) = forward(on, p, Some(&old.y));
    assert_eq!(bits(&t), bits(&t_again), "T depends on what Y holds");
    let (dx, grad) = backward(on, p, &t, Dx::Replace, &old.grad);
    let (dx_added, grad_again) = backward(on, p, &t, Dx::Add(&old.dx), &old.grad);
    let (none, grad_alone) = backward(on, p, &t, Dx::Skip, &old.grad);
    assert!(none.is_none());
    assert_eq!(bits(&grad), bits(&grad_again), "the gradient depends on what dX holds");
    assert_eq!(bits(&grad), bits(&grad_alone), "the gradient depends on whether dX is wanted");
    let wide = |m: Array2<E>| m.iter().map(|v| v.to_f32().into()).collect();
    Results {
        t: t.iter().map(|&v| v.into()).collect(),
        y: wide(y),
        y_added: wide(y_added),
        dx: dx.map(wide).unwrap_or_default(),
        dx_added: dx_added.map(wide).unwrap_or_default(),
        grad: grad.iter().map(|&v| v.into()).collect(),
    }
}

/// Y and T; Y is added to `old`, or replaces NaNs.
///
/// # Panics
/// A call that fails or writes what it must not.
pub fn forward<E: Element>(
    on: &impl Engine,
    p: &Problem<E>,
    old: Option<&Array2<E>>,
) -> (Array2<E>, Vec<f32>) {
    let (y, accum, tail) = match old {
        None => (Matrix::poisoned(p.rows(), p.op.shape.d_out(), p.pad), Accum::Replace, 0),
        Some(old) => (Matrix::output(old, p.pad), Accum::Add, TAIL),
    };
    let x = Matrix::input(&p.x, p.pad);
    let t_len = p.op.t_len(p.rows());
    let (x_layout, y_layout) = (x.layout, y.layout);
    let (theta, x) = (on.place(Guarded::of(p.theta.as_slice())), on.place(x.buffer));
    let (mut y, mut t) = (on.place(y.buffer), on.place(Guarded::poisoned(t_len + tail)));
    let mut workspace = on.place(workspace(on, &p.op, Pass::Forward, p.rows(), tail));
    let call = Forward {
        theta: on.floats(&theta),
        x: on.rows(&x, x_layout),
        y: on.rows_mut(&mut y, y_layout),
        accum,
        t: on.floats_mut(&mut t),
        workspace: on.floats_mut(&mut workspace),
        dropout: p.key,
    };
    on.backend().forward(&p.op, call).unwrap_or_else(|e| panic!("forward: {e}"));
    let (y, t) = (Matrix { buffer: on.fetch(y), layout: y_layout }, on.fetch(t));
    y.assert_intact("y");
    t.assert_intact("t");
    assert!(t.body()[t_len..].iter().all(|v| v.is_nan()), "written into the tail of t");
    on.fetch(workspace).assert_intact("workspace");
    (y.view().to_owned(), t.body()[..t_len].to_vec())
}

/// dX and \[dA | dB | dC\] added to `old`.
///
/// # Panics
/// A call that fails or writes what it must not.
pub fn backward<E: Element>(
    on: &impl Engine,
    p: &Problem<E>,
    t: &[f32],
    dx: Dx<E>,
    old: &[f32],
) -> (Option<Array2<E>>, Vec<f32>) {
    let (out, accum, tail) = match dx {
        Dx::Skip => (None, Accum::Replace, 0),
        Dx::Replace => (Some(Matrix::poisoned(p.rows(), p.op.shape.d_in(), p.pad)), Accum::Replace, 0),
        Dx::Add(old) => (Some(Matrix::output(old, p.pad)), Accum::Add, TAIL),
    };
    let (x, dy) = (Matrix::input(&p.x, p.pad), Matrix::input(&p.dy, p.pad));
    let (x_layout, dy_layout) = (x.layout, dy.layout);
    let (theta, x, dy) = (on.place(Guarded::of(p.theta.as_slice())), on.place(x.buffer), on.place(dy.buffer));
    let t = on.place(Guarded::of(&[t, &[f32::NAN; TAIL][..tail]].concat()));
    let mut out = out.map(|m| (on.place(m.buffer), m.layout));
    let mut grad = on.place(Guarded::of(old));
    let mut workspace = on.place(workspace(on, &p.op, Pass::Backward { dx: true }, p.rows(), tail));
    let call = Backward {
        theta: on.floats(&theta),
        x: on.rows(&x, x_layout),
        t: on.floats(&t),
        dy: on.rows(&dy, dy_layout),
        dx: out.as_mut().map(|(m, layout)| (on.rows_mut(m, *layout), accum)),
        grad: on.floats_mut(&mut grad),
        workspace: on.floats_mut(&mut workspace),
        dropout: p.key,
    };
    on.backend().backward(&p.op, call).unwrap_or_else(|e| panic!("backward: {e}"));
    let out = out.map(|(m, layout)| Matrix { buffer: on.fetch(m), layout });
    if let Some(dx) = &out {
        dx.assert_intact("dx");
    }
    let grad = on.fetch(grad);
    grad.assert_intact("grad");
    on.fetch(workspace).assert_intact("workspace");
    (out.map(|dx| dx.view().to_owned()), grad.body().to_vec())
}

/// Rows `first_row ..` of the weight, merged into `old` or written over NaNs.
///
/// # Panics
/// A call that fails or writes what it must not.
pub fn merge<E: Element>(
    on: &impl Engine,
    op: &KronOp,
    theta: &Theta,
    band: std::ops::Range<usize>,
    old: Option<&Array2<E>>,
    pad: usize,
) -> Array2<E> {
    let (w, accum, tail) = match old {
        None => (Matrix::poisoned(band.len(), op.shape.d_in(), pad), Accum::Replace, 0),
        Some(old) => (Matrix::output(old, pad), Accum::Add, TAIL),
    };
    let layout = w.layout;
    let (theta, mut w) = (on.place(Guarded::of(theta.as_slice())), on.place(w.buffer));
    let mut workspace = on.place(workspace(on, op, Pass::Merge, band.len(), tail));
    let call = Merge {
        theta: on.floats(&theta),
        w: on.rows_mut(&mut w, layout),
        first_row: band.start,
        accum,
        workspace: on.floats_mut(&mut workspace),
    };
    on.backend().merge(op, call).unwrap_or_else(|e| panic!("merge: {e}"));
    let w = Matrix { buffer: on.fetch(w), layout };
    w.assert_intact("w");
    on.fetch(workspace).assert_intact("workspace");
    w.view().to_owned()
}

/// A workspace of the length that the backend asks for; its contents are NaN
/// because a call may not rely on them.
fn workspace(on: &impl Engine, op: &KronOp, pass: Pass, rows: usize, tail: usize) -> Guarded<f32> {
    Guarded::poisoned(on.backend().workspace_len(op, pass, rows) + tail)
}

/// The bytes of a slice, to compare results exactly.
pub fn bits<T: bytemuck::Pod>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
