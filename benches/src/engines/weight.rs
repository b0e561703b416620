//! Products with a whole d_out × d_in matrix: the base layer's, and those of a materialised ΔW.

use kron_core::{Accum, Dtype, Element, LayerDims};
use rayon::prelude::*;

use crate::convert::{add_into, narrow_into, widen, widen_into};
use crate::data::Set;
use crate::gemm::{GemmCrate, Mat, MatMut, product};

/// Rows of a 16-bit weight that are converted at a time: 8 MB with d_in = 4096.
const WEIGHT_ROWS: usize = 512;

/// A d_out × d_in matrix.
#[derive(Clone, Copy)]
pub enum Weight<'a, E> {
    /// The layer's own dtype.
    Own(&'a [E]),
    /// float32, as PEFT keeps an adapter's weights.
    Float32(&'a [f32]),
}

/// Y (+)= X·Wᵀ, dX += dY·W and dYᵀ·X, with the float32 copies that a 16-bit dtype needs.
pub struct Products {
    library: GemmCrate,
    threads: usize,
    d_out: usize,
    d_in: usize,
    /// X, then the sum of dX.
    x: Vec<f32>,
    /// A band of Y's columns, then dY.
    y: Vec<f32>,
    /// A band of W's rows.
    w: Vec<f32>,
}

impl Products {
    pub fn new<E: Element>(library: GemmCrate, threads: usize, rows: usize, layer: LayerDims) -> Self {
        let LayerDims { d_out, d_in } = layer;
        let half = E::DTYPE != Dtype::F32;
        let zeros = |len: usize| vec![0.0; if half { len } else { 0 }];
        let (x, y) = (zeros(rows * d_in), zeros(rows * d_out));
        Self { library, threads, d_out, d_in, x, y, w: zeros(WEIGHT_ROWS.min(d_out) * d_in) }
    }

    pub fn bytes(&self) -> usize {
        4 * (self.x.len() + self.y.len() + self.w.len())
    }

    /// Computes Y (+)= X·Wᵀ.
    pub fn forward<E: Element>(&mut self, set: &mut Set<E>, weight: Weight<E>, accum: Accum) {
        let (n, d_out, d_in) = (set.rows(), self.d_out, self.d_in);
        let x = Mat::new(in_float32(set.x.flat(), &mut self.x), n, d_in);
        let (y_cols, y) = (d_out, set.y.flat_mut());
        for (first, count) in bands::<E>(d_out) {
            let w = Mat::new(band(weight, first * d_in, count * d_in, &mut self.w), count, d_in);
            if E::DTYPE == Dtype::F32 {
                let out = MatMut::strided(bytemuck::cast_slice_mut(&mut y[first..]), n, count, y_cols);
                product(self.library, self.threads, 1.0, x, w.t(), accum, out);
                continue;
            }
            let out = &mut self.y[..n * count];
            product(self.library, self.threads, 1.0, x, w.t(), Accum::Replace, MatMut::new(out, n, count));
            y.par_chunks_mut(y_cols).zip(out.par_chunks(count)).for_each(|(y, out)| {
                let y = &mut y[first..first + count];
                match accum {
                    Accum::Replace => narrow_into(out, y),
                    Accum::Add => add_into(y, out, 1.0),
                }
            });
        }
    }

    /// Computes dX += dY·W.
    pub fn backward<E: Element>(&mut self, set: &mut Set<E>, weight: Weight<E>) {
        let (n, d_out, d_in) = (set.rows(), self.d_out, self.d_in);
        let dy = in_float32(set.dy.flat(), &mut self.y);
        let dx = set.dx.flat_mut();
        for (first, count) in bands::<E>(d_out) {
            let w = Mat::new(band(weight, first * d_in, count * d_in, &mut self.w), count, d_in);
            let dy = Mat::strided(&dy[first..], n, count, d_out);
            let (out, accum): (&mut [f32], _) = match E::DTYPE {
                Dtype::F32 => (bytemuck::cast_slice_mut(dx), Accum::Add),
                _ => (&mut self.x, if first == 0 { Accum::Replace } else { Accum::Add }),
            };
            product(self.library, self.threads, 1.0, dy, w, accum, MatMut::new(out, n, d_in));
        }
        if E::DTYPE != Dtype::F32 {
            dx.par_chunks_mut(d_in).zip(self.x.par_chunks(d_in)).for_each(|(dx, sum)| add_into(dx, sum, 1.0));
        }
    }

    /// Computes G = dYᵀ·X, d_out × d_in.
    pub fn gradient<E: Element>(&mut self, set: &Set<E>, g: &mut [f32]) {
        let (n, d_out, d_in) = (set.rows(), self.d_out, self.d_in);
        let dy = Mat::new(in_float32(set.dy.flat(), &mut self.y), n, d_out);
        let x = Mat::new(in_float32(set.x.flat(), &mut self.x), n, d_in);
        product(self.library, self.threads, 1.0, dy.t(), x, Accum::Replace, MatMut::new(g, d_out, d_in));
    }
}

/// Returns (first, count) of the bands of W's rows: one band if the dtype is float32.
fn bands<E: Element>(d_out: usize) -> impl Iterator<Item = (usize, usize)> {
    let step = if E::DTYPE == Dtype::F32 { d_out } else { WEIGHT_ROWS };
    (0..d_out).step_by(step).map(move |first| (first, step.min(d_out - first)))
}

fn band<'a, E: Element>(
    weight: Weight<'a, E>,
    first: usize,
    len: usize,
    scratch: &'a mut [f32],
) -> &'a [f32] {
    match weight {
        Weight::Float32(w) => &w[first..first + len],
        Weight::Own(w) => in_float32(&w[first..first + len], scratch),
    }
}

/// Does the same as [`widen`], on all threads.
pub fn in_float32<'a, E: Element>(from: &'a [E], scratch: &'a mut [f32]) -> &'a [f32] {
    const PIECE: usize = 1 << 14;
    if E::DTYPE == Dtype::F32 {
        return widen(from, &mut []);
    }
    let to = &mut scratch[..from.len()];
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| widen_into(from, to));
    to
}
