//! Runs our forward, backward and merge on a case, as a trainer would call them.
//!
//! First the adapter adds into the base layer's y and dx, which are rounded to the dtype. Then its own
//! share is computed again with Replace, into buffers of NaN, none of which may remain.

use kron_adapter::with_dtype;
use kron_core::{Accum, Backend, Backward, Cpu, Element, Forward, KronOp, Merge, Pass, Theta};
use ndarray::{Array2, ArrayView2};

use super::case::{Case, W1};
use super::quantity::{Outputs, Quantity};
use super::{base, formulas};
use crate::{Error, Result};

/// Runs a case in its dtype, on rayon's current pool.
///
/// # Errors
/// The backend refuses a call.
pub fn run(cpu: &Cpu, case: &Case) -> Result<Outputs> {
    let out = with_dtype!(case.dtype, E => outputs::<E>(cpu, case));
    out.map_err(|e| Error::data(format!("case {}: {e}", case.name)))
}

fn outputs<E: Element>(cpu: &Cpu, case: &Case) -> kron_core::Result<Outputs> {
    let theta = theta(case)?;
    let (x, dy) = (narrow::<E>(case.x.view()), narrow::<E>(case.dy.view()));
    let (y0, dx0) = formulas::bases(case);
    let layer = Layer { cpu, op: case.op, theta: &theta, x: &x, dy: &dy };
    let (y, t) = layer.forward(narrow(y0.view()), Accum::Add)?;
    let (delta, _) = layer.forward(poison(y0.dim()), Accum::Replace)?;
    let (dx, grad) = layer.backward(&t, narrow(dx0.view()), Accum::Add)?;
    let (dx_delta, _) = layer.backward(&t, poison(dx0.dim()), Accum::Replace)?;
    let mut out = gradients(case, grad);
    out.insert(Quantity::Y, wide(&y));
    out.insert(Quantity::Delta, wide(&delta));
    out.insert(Quantity::Dx, wide(&dx));
    out.insert(Quantity::DxDelta, wide(&dx_delta));
    out.insert(Quantity::Merged, wide(&layer.merge(&case.sampled_rows())?));
    Ok(out)
}

/// Returns θ in float32. Where A is stored as a product, it is multiplied out first.
fn theta(case: &Case) -> kron_core::Result<Theta> {
    let single = |m: &Array2<f64>| m.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let a = match &case.w1 {
        W1::Full(a) => single(a),
        W1::Product(w1_a, w1_b) => single(&w1_a.dot(w1_b)),
    };
    let b = case.b.as_ref().map(single).unwrap_or_default();
    Theta::from_factors(case.op.shape, &a, &b, &single(&case.c))
}

/// Splits \[dA | dB | dC\], and applies the chain rule to the factors of A in float32.
fn gradients(case: &Case, grad: Theta) -> Outputs {
    let s = case.shape();
    let mut out = Outputs::new();
    if let W1::Product(w1_a, w1_b) = &case.w1 {
        let da = Array2::from_shape_fn((s.a_out(), s.a_in()), |(i, j)| grad.a()[i * s.a_in() + j]);
        let single = |m: &Array2<f64>| m.mapv(|v| v as f32);
        out.insert(Quantity::W1a, wide(&da.dot(&single(w1_b).t())));
        out.insert(Quantity::W1b, wide(&single(w1_a).t().dot(&da)));
    }
    let wide = |v: &[f32]| v.iter().map(|&v| v.into()).collect::<Vec<f64>>();
    out.insert(Quantity::A, wide(grad.a()));
    if s.rank().is_some() {
        out.insert(Quantity::B, wide(grad.b()));
        out.insert(Quantity::C, wide(grad.c()));
    } else {
        out.insert(Quantity::M, wide(grad.c()));
    }
    out
}

/// Operands of one layer.
struct Layer<'a, E> {
    cpu: &'a Cpu,
    op: KronOp,
    theta: &'a Theta,
    x: &'a Array2<E>,
    dy: &'a Array2<E>,
}

impl<E: Element> Layer<'_, E> {
    /// Returns Y and T.
    fn forward(&self, mut y: Array2<E>, accum: Accum) -> kron_core::Result<(Array2<E>, Vec<f32>)> {
        let mut t = vec![f32::NAN; self.op.t_len(self.x.nrows())];
        let mut workspace = self.workspace(Pass::Forward, self.x.nrows());
        let call = Forward {
            theta: self.theta.as_slice(),
            x: self.x.view(),
            y: y.view_mut(),
            accum,
            t: t.as_mut_slice(),
            workspace: workspace.as_mut_slice(),
            dropout: None,
        };
        self.cpu.forward(&self.op, call)?;
        Ok((y, t))
    }

    /// Returns dX and θ's gradient.
    fn backward(&self, t: &[f32], mut dx: Array2<E>, accum: Accum) -> kron_core::Result<(Array2<E>, Theta)> {
        let mut grad = Theta::zeros(self.op.shape);
        let mut workspace = self.workspace(Pass::Backward { dx: true }, self.x.nrows());
        let call = Backward {
            theta: self.theta.as_slice(),
            x: self.x.view(),
            t,
            dy: self.dy.view(),
            dx: Some((dx.view_mut(), accum)),
            grad: grad.as_mut_slice(),
            workspace: workspace.as_mut_slice(),
            dropout: None,
        };
        self.cpu.backward(&self.op, call)?;
        Ok((dx, grad))
    }

    /// Returns rows of W + ΔW, each merged as a band of its own.
    fn merge(&self, rows: &[usize]) -> kron_core::Result<Array2<E>> {
        let mut workspace = self.workspace(Pass::Merge, 1);
        let mut w = Array2::from_shape_fn((rows.len(), self.op.shape.d_in()), |(row, i)| {
            E::from_f32(base::weight(rows[row], i) as f32)
        });
        for (mut band, &first_row) in w.exact_chunks_mut((1, self.op.shape.d_in())).into_iter().zip(rows) {
            let call = Merge {
                theta: self.theta.as_slice(),
                w: band.view_mut(),
                first_row,
                accum: Accum::Add,
                workspace: workspace.as_mut_slice(),
            };
            self.cpu.merge(&self.op, call)?;
        }
        Ok(w)
    }

    fn workspace(&self, pass: Pass, rows: usize) -> Vec<f32> {
        vec![f32::NAN; self.cpu.workspace_len(&self.op, pass, rows)]
    }
}

fn poison<E: Element>(dim: (usize, usize)) -> Array2<E> {
    Array2::from_elem(dim, E::from_f32(f32::NAN))
}

fn narrow<E: Element>(m: ArrayView2<f64>) -> Array2<E> {
    m.mapv(|v| E::from_f32(v as f32))
}

fn wide<E: Element>(m: &Array2<E>) -> Vec<f64> {
    m.iter().map(|v| v.to_f32().into()).collect()
}
