//! Calls of the CPU backend through guarded buffers: each returns the outputs
//! after it has checked that nothing else was written.
//!
//! A replacing call gets buffers of exactly the length that the backend asks
//! for, an adding one longer ones, whose tails must survive.

use kron_core::{Accum, Backend, Backward, Cpu, Element, Forward, KronOp, Merge, Pass, Theta};
use ndarray::Array2;

use crate::compare::Results;
use crate::guard::{Guarded, Matrix};
use crate::inputs::{Old, Problem};

/// Elements that an adding call gets beyond what it needs.
const TAIL: usize = 5;

/// What backward is to do about dX.
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
pub fn results<E: Element>(cpu: &Cpu, p: &Problem<E>, old: &Old<E>) -> Results {
    let (y, t) = forward(cpu, p, None);
    let (y_added, t_again) = forward(cpu, p, Some(&old.y));
    assert_eq!(bits(&t), bits(&t_again), "T depends on what Y holds");
    let (dx, grad) = backward(cpu, p, &t, Dx::Replace, &old.grad);
    let (dx_added, grad_again) = backward(cpu, p, &t, Dx::Add(&old.dx), &old.grad);
    let (none, grad_alone) = backward(cpu, p, &t, Dx::Skip, &old.grad);
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
pub fn forward<E: Element>(cpu: &Cpu, p: &Problem<E>, old: Option<&Array2<E>>) -> (Array2<E>, Vec<f32>) {
    let (x, mut y, accum, tail) = match old {
        None => (&p.x, Matrix::poisoned(p.rows(), p.op.shape.d_out(), p.pad), Accum::Replace, 0),
        Some(old) => (&p.x, Matrix::output(old, p.pad), Accum::Add, TAIL),
    };
    let x = Matrix::input(x, p.pad);
    let t_len = p.op.t_len(p.rows());
    let mut t = Guarded::poisoned(t_len + tail);
    let mut workspace = workspace(cpu, &p.op, Pass::Forward, p.rows(), tail);
    let call = Forward {
        theta: p.theta.as_slice(),
        x: x.view(),
        y: y.view_mut(),
        accum,
        t: t.body_mut(),
        workspace: workspace.body_mut(),
        dropout: p.key,
    };
    cpu.forward(&p.op, call).unwrap_or_else(|e| panic!("forward: {e}"));
    y.assert_intact("y");
    t.assert_intact("t");
    assert!(t.body()[t_len..].iter().all(|v| v.is_nan()), "written into the tail of t");
    workspace.assert_intact("workspace");
    (y.view().to_owned(), t.body()[..t_len].to_vec())
}

/// dX and \[dA | dB | dC\] added to `old`.
///
/// # Panics
/// A call that fails or writes what it must not.
pub fn backward<E: Element>(
    cpu: &Cpu,
    p: &Problem<E>,
    t: &[f32],
    dx: Dx<E>,
    old: &[f32],
) -> (Option<Array2<E>>, Vec<f32>) {
    let (mut out, accum, tail) = match dx {
        Dx::Skip => (None, Accum::Replace, 0),
        Dx::Replace => (Some(Matrix::poisoned(p.rows(), p.op.shape.d_in(), p.pad)), Accum::Replace, 0),
        Dx::Add(old) => (Some(Matrix::output(old, p.pad)), Accum::Add, TAIL),
    };
    let (x, dy) = (Matrix::input(&p.x, p.pad), Matrix::input(&p.dy, p.pad));
    let t = Guarded::of(&[t, &[f32::NAN; TAIL][..tail]].concat());
    let mut grad = Guarded::of(old);
    let mut workspace = workspace(cpu, &p.op, Pass::Backward, p.rows(), tail);
    let call = Backward {
        theta: p.theta.as_slice(),
        x: x.view(),
        t: t.body(),
        dy: dy.view(),
        dx: out.as_mut().map(|m| (m.view_mut(), accum)),
        grad: grad.body_mut(),
        workspace: workspace.body_mut(),
        dropout: p.key,
    };
    cpu.backward(&p.op, call).unwrap_or_else(|e| panic!("backward: {e}"));
    if let Some(dx) = &out {
        dx.assert_intact("dx");
    }
    grad.assert_intact("grad");
    workspace.assert_intact("workspace");
    (out.map(|dx| dx.view().to_owned()), grad.body().to_vec())
}

/// Rows `first_row ..` of the weight, merged into `old` or written over NaNs.
///
/// # Panics
/// A call that fails or writes what it must not.
pub fn merge<E: Element>(
    cpu: &Cpu,
    op: &KronOp,
    theta: &Theta,
    band: std::ops::Range<usize>,
    old: Option<&Array2<E>>,
    pad: usize,
) -> Array2<E> {
    let (mut w, accum, tail) = match old {
        None => (Matrix::poisoned(band.len(), op.shape.d_in(), pad), Accum::Replace, 0),
        Some(old) => (Matrix::output(old, pad), Accum::Add, TAIL),
    };
    let mut workspace = workspace(cpu, op, Pass::Merge, band.len(), tail);
    let call = Merge {
        theta: theta.as_slice(),
        w: w.view_mut(),
        first_row: band.start,
        accum,
        workspace: workspace.body_mut(),
    };
    cpu.merge(op, call).unwrap_or_else(|e| panic!("merge: {e}"));
    w.assert_intact("w");
    workspace.assert_intact("workspace");
    w.view().to_owned()
}

/// A workspace of the length that the backend asks for; its contents are NaN
/// because a call may not rely on them.
fn workspace(cpu: &Cpu, op: &KronOp, pass: Pass, rows: usize, tail: usize) -> Guarded<f32> {
    Guarded::poisoned(cpu.workspace_len(op, pass, rows) + tail)
}

/// The bytes of a slice, to compare results exactly.
pub fn bits<T: bytemuck::Pod>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
