//! `kron-dense`: ΔW = s·A ⊗ (B·C) as a whole matrix, and dense products with it.
//!
//! ```text
//! forward    ΔW = s·A ⊗ (B·C)       Y += X·ΔWᵀ
//! backward   dX += dY·ΔW    G = dYᵀ·X    dA_ij = s·⟨G_ij, B·C⟩    D = s·Σ A_ij·G_ij    dB += D·Cᵀ    dC += Bᵀ·D
//! ```
//! G_ij is block (i, j) of G, b_out × c_in. ΔW is kept from forward to backward, as autograd keeps it.

use kron_core::{Accum, Element, KronOp, LayerDims, Result, Theta};
use rayon::prelude::*;

use super::weight::{Products, Weight};
use crate::data::Set;
use crate::engine::{Engine, EngineConfig};
use crate::gemm::{GemmCrate, Mat, MatMut, product};

pub struct Dense {
    op: KronOp,
    theta: Theta,
    grad: Vec<f32>,
    rows: usize,
    library: GemmCrate,
    threads: usize,
    products: Products,
    /// B·C, b_out × c_in, and its gradient.
    inner: Vec<f32>,
    /// ΔW, d_out × d_in.
    delta: Vec<f32>,
    /// G, d_out × d_in.
    g: Vec<f32>,
}

impl Dense {
    pub fn new<E: Element>(
        (op, theta): (KronOp, Theta),
        library: GemmCrate,
        config: &EngineConfig<E>,
    ) -> Self {
        let s = &op.shape;
        let layer = LayerDims { d_out: s.d_out(), d_in: s.d_in() };
        Self {
            products: Products::new::<E>(library, config.threads, config.rows, layer),
            inner: vec![0.0; s.b_out() * s.c_in()],
            delta: vec![0.0; s.d_out() * s.d_in()],
            g: vec![0.0; s.d_out() * s.d_in()],
            grad: vec![0.0; s.params()],
            rows: config.rows,
            library,
            threads: config.threads,
            op,
            theta,
        }
    }

    fn b(&self) -> Mat<'_> {
        Mat::new(self.theta.b(), self.op.shape.b_out(), self.op.shape.width())
    }

    fn c(&self) -> Mat<'_> {
        Mat::new(self.theta.c(), self.op.shape.width(), self.op.shape.c_in())
    }

    fn materialise(&mut self) {
        let (s, scale) = (self.op.shape, self.op.scale.get());
        let mut inner = std::mem::take(&mut self.inner);
        let out = MatMut::new(&mut inner, s.b_out(), s.c_in());
        product(self.library, self.threads, 1.0, self.b(), self.c(), Accum::Replace, out);
        let a = self.theta.a();
        self.delta.par_chunks_mut(s.d_in()).enumerate().for_each(|(o, row)| {
            let inner = &inner[o % s.b_out() * s.c_in()..][..s.c_in()];
            for (j, block) in row.chunks_mut(s.c_in()).enumerate() {
                let times = scale * a[o / s.b_out() * s.a_in() + j];
                block.iter_mut().zip(inner).for_each(|(w, v)| *w = times * v);
            }
        });
        self.inner = inner;
    }

    /// Adds the gradient \[dA | dB | dC\] that follows from G.
    fn project(&mut self) {
        let (s, scale) = (self.op.shape, self.op.scale.get());
        let (a_in, b_out, c_in, d_in) = (s.a_in(), s.b_out(), s.c_in(), s.d_in());
        let (g, inner, a) = (&self.g, &self.inner, self.theta.a());
        let block_row = |i: usize, j: usize, p: usize| &g[(i * b_out + p) * d_in + j * c_in..][..c_in];
        let (da, rest) = self.grad.split_at_mut(s.a_len());
        da.par_iter_mut().enumerate().for_each(|(ij, da)| {
            let rows =
                (0..b_out).map(|p| dot(block_row(ij / a_in, ij % a_in, p), &inner[p * c_in..][..c_in]));
            *da += scale * rows.sum::<f32>();
        });
        let mut d = vec![0.0; b_out * c_in];
        d.par_chunks_mut(c_in).enumerate().for_each(|(p, d)| {
            for (ij, a) in a.iter().enumerate() {
                let times = scale * a;
                d.iter_mut().zip(block_row(ij / a_in, ij % a_in, p)).for_each(|(d, g)| *d += times * g);
            }
        });
        let (db, dc) = rest.split_at_mut(s.b_len());
        let d = Mat::new(&d, b_out, c_in);
        let (b, c) = (Mat::new(self.theta.b(), b_out, s.width()), Mat::new(self.theta.c(), s.width(), c_in));
        let (l, n) = (self.library, self.threads);
        product(l, n, 1.0, d, c.t(), Accum::Add, MatMut::new(db, b_out, s.width()));
        product(l, n, 1.0, b.t(), d, Accum::Add, MatMut::new(dc, s.width(), c_in));
    }
}

/// Returns a·b, in eight partial sums so that the compiler vectorises it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a8, a1) = a.as_chunks::<8>();
    let (b8, b1) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for k in 0..8 {
            sums[k] += a[k] * b[k];
        }
    }
    sums.iter().sum::<f32>() + a1.iter().zip(b1).map(|(a, b)| a * b).sum::<f32>()
}

impl<E: Element> Engine<E> for Dense {
    fn scratch_bytes(&self, backward: bool) -> usize {
        let both = self.inner.len() + self.delta.len();
        self.products.bytes() + 4 * (both + if backward { self.g.len() } else { 0 })
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        debug_assert_eq!(set.rows(), self.rows);
        self.materialise();
        self.products.forward(set, Weight::Float32(&self.delta), Accum::Add);
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.products.backward(set, Weight::<E>::Float32(&self.delta));
        self.products.gradient(set, &mut self.g);
        self.project();
        Ok(())
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }
}
