//! W + ΔWᵀ by kron-core's merge, for code that calls burn's own `forward`, and its backward.
//!
//! burn stores W as d_in × d_out, and ΔWᵀ = s·Aᵀ ⊗ (Cᵀ·Bᵀ) is an adapter itself: that of the transposed layer, with
//! the factors Aᵀ, Cᵀ and Bᵀ.
//!
//! ```text
//! G = dW, a_in × c_in × a_out × b_out     dM = s·Σ A·G   dB = dM·Cᵀ   dC = Bᵀ·dM     dA = s·Σ G·M     M = B·C
//! ```

use burn::backend::flex::FlexTensor;
use kron_core::{Accum, Backend as _, Cpu, KronOp, KronShape, LayerDims, Merge, Outer, Pass, Split, Theta};
use ndarray::{Array2, ArrayView2};

use crate::operands::{Activation, floats, in_rows, owned, view, view_mut};

/// An adapter and that of the transposed layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merging {
    /// Adapter of a layer of d_out × d_in.
    pub op: KronOp,
    transposed: KronOp,
}

impl Merging {
    /// Transposes an adapter.
    ///
    /// # Errors
    /// The transposed factors have more elements than a shape may have.
    pub(crate) fn new(op: KronOp) -> kron_core::Result<Self> {
        let s = op.shape;
        let layer = LayerDims { d_out: s.d_in(), d_in: s.d_out() };
        let split = Split { a_out: s.a_in(), a_in: s.a_out() };
        let transposed = KronShape::new(layer, split, s.outer(), s.inner())?;
        Ok(Self { op, transposed: KronOp::new(transposed, op.scale) })
    }

    /// Returns \[Aᵀ | Cᵀ | Bᵀ\] of θ.
    fn transposed_theta(&self, theta: &[f32]) -> Vec<f32> {
        let s = self.op.shape;
        let (a, rest) = theta.split_at(s.a_len());
        let (b, c) = rest.split_at(s.b_len());
        let columns = [(a, s.a_in()), (c, s.c_in()), (b, s.width())];
        columns.into_iter().flat_map(|(factor, columns)| transposed(factor, columns)).collect()
    }
}

/// Walks down the columns of a row-major matrix.
fn transposed(matrix: &[f32], columns: usize) -> impl Iterator<Item = f32> {
    (0..columns).flat_map(move |column| matrix.iter().skip(column).step_by(columns).copied())
}

/// Computes W + ΔWᵀ in the layout of W. θ is contiguous.
pub(crate) fn merge<E: Activation>(weight: FlexTensor, theta: &FlexTensor, merging: &Merging) -> FlexTensor {
    let of_columns = weight.transpose(0, 1);
    if of_columns.is_contiguous() && !weight.is_contiguous() {
        return merge_rows::<E>(of_columns, floats(theta), &merging.op).transpose(0, 1);
    }
    drop(of_columns);
    merge_rows::<E>(weight, &merging.transposed_theta(floats(theta)), &merging.transposed)
}

fn merge_rows<E: Activation>(weight: FlexTensor, theta: &[f32], op: &KronOp) -> FlexTensor {
    let (mut merged, cpu, rows) = (owned::<E>(weight), Cpu::new(), op.shape.d_out());
    let call = Merge::<'_, Cpu, E> {
        theta,
        w: view_mut::<E>(&mut merged, op.shape.d_in()),
        first_row: 0,
        accum: Accum::Add,
        workspace: &mut vec![0.0; cpu.workspace_len(op, Pass::Merge, rows)],
    };
    cpu.merge(op, call).expect("sizes were checked before");
    merged
}

/// Computes \[dA | dB | dC\] of dW, d_in × d_out, with sums in float64.
pub(crate) fn backward<E: Activation>(dw: &FlexTensor, theta: &[f32], op: &KronOp) -> Vec<f32> {
    let (dw, s) = (in_rows(dw.clone()), op.shape);
    let g: ArrayView2<'_, E> = view(&dw); // [a_in × c_in, a_out × b_out]
    let theta = Theta::from_vec(s, theta.to_vec()).expect("sizes were checked before");
    let matrix = |factor: &[f32], rows: usize, columns: usize| {
        Array2::from_shape_fn((rows, columns), |(i, j)| f64::from(factor[i * columns + j]))
    };
    let (a, c) = (matrix(theta.a(), s.a_out(), s.a_in()), matrix(theta.c(), s.width(), s.c_in()));
    let b = s.rank().map(|r| matrix(theta.b(), s.b_out(), r));
    let m = b.as_ref().map_or(c.t().to_owned(), |b| c.t().dot(&b.t())); // [c_in, b_out]
    let (mut da, mut dm) = (Array2::<f64>::zeros(a.dim()), Array2::<f64>::zeros(m.dim()));
    for (row, g) in g.rows().into_iter().enumerate() {
        let (i, k) = (row / s.c_in(), row % s.c_in());
        for (o, block) in g.exact_chunks(s.b_out()).into_iter().enumerate() {
            for (p, g) in block.iter().enumerate() {
                let g = f64::from(g.to_f32());
                da[(o, i)] += g * m[(k, p)];
                dm[(k, p)] += g * a[(o, i)];
            }
        }
    }
    let scale = f64::from(op.scale.get());
    let (da, dm) = (da * scale, dm * scale);
    let da = (s.outer() == Outer::Trained).then_some(da);
    let (db, dc) = match b {
        Some(b) => (Some(dm.t().dot(&c.t())), b.t().dot(&dm.t())),
        None => (None, dm.reversed_axes()),
    };
    da.iter().chain(&db).chain([&dc]).flatten().map(|v| *v as f32).collect()
}
