//! `kron-unfused`: the reshape identity in separate products, as a framework runs it.
//!
//! ```text
//! forward    T = X·Cᵀ       U = A·T    Z = U·Bᵀ               Y += s·Z
//! backward   dU = s·dY·B    dB += s·Σ dYᵀ·U    dT = Aᵀ·dU    dA += Σ dU·Tᵀ    dC += Σ dTᵀ·X    Z = dT·C    dX += Z
//! ```
//! Z is a second Y (a second dX); U is computed again in backward. The buffers
//! are kept between calls, as a framework's allocator keeps them.

use kron_core::{Accum, Dtype, Element, KronOp, Result, Theta};
use rayon::prelude::*;

use super::weight::in_float32;
use crate::convert::add_into;
use crate::data::Set;
use crate::engine::{Engine, EngineConfig};
use crate::gemm::{GemmCrate, Mat, MatMut, product};

pub struct Unfused {
    op: KronOp,
    theta: Theta,
    grad: Vec<f32>,
    rows: usize,
    library: GemmCrate,
    threads: usize,
    /// X or dY in float32.
    wide: Vec<f32>,
    /// Z: n × d_out, or n × d_in.
    z: Vec<f32>,
    /// T and dT, n × a_in × r, and with n in the middle, a_in × n × r.
    t: [Vec<f32>; 2],
    /// U and dU, n × a_out × r, and a_out × n × r.
    u: [Vec<f32>; 2],
}

impl Unfused {
    pub fn new<E: Element>(
        (op, theta): (KronOp, Theta),
        library: GemmCrate,
        config: &EngineConfig<E>,
    ) -> Self {
        let (s, n) = (&op.shape, config.rows);
        let widest = n * s.d_in().max(s.d_out());
        let zeros = |len: usize| vec![0.0; len];
        Self {
            wide: zeros(if E::DTYPE == Dtype::F32 { 0 } else { widest }),
            z: zeros(widest),
            t: [0, 1].map(|_| zeros(n * s.a_in() * s.width())),
            u: [0, 1].map(|_| zeros(n * s.a_out() * s.width())),
            grad: zeros(s.params()),
            rows: n,
            library,
            threads: config.threads,
            op,
            theta,
        }
    }

    fn product(&self, alpha: f32, a: Mat, b: Mat, accum: Accum, c: MatMut) {
        product(self.library, self.threads, alpha, a, b, accum, c);
    }

    /// Computes U = A·T for every token: one product once the tokens lie in the middle.
    fn outer(&mut self, t: &[f32]) {
        let (s, n) = (self.op.shape, self.rows);
        let (a_out, a_in, r) = (s.a_out(), s.a_in(), s.width());
        let ([dt, mut t_mid], [mut u, mut u_mid]) =
            (std::mem::take(&mut self.t), std::mem::take(&mut self.u));
        swap(t, &mut t_mid, n, a_in, r);
        let a = Mat::new(self.theta.a(), a_out, a_in);
        let out = MatMut::new(&mut u_mid, a_out, n * r);
        self.product(1.0, a, Mat::new(&t_mid, a_in, n * r), Accum::Replace, out);
        swap(&u_mid, &mut u, a_out, n, r);
        (self.t, self.u) = ([dt, t_mid], [u, u_mid]);
    }
}

/// Transposes p × q × r to q × p × r.
fn swap(from: &[f32], to: &mut [f32], p: usize, q: usize, r: usize) {
    to.par_chunks_mut(p * r).enumerate().with_min_len(64).for_each(|(j, to)| {
        for (i, to) in to.chunks_mut(r).enumerate() {
            to.copy_from_slice(&from[(i * q + j) * r..][..r]);
        }
    });
}

fn add_all<E: Element>(to: &mut [E], add: &[f32], times: f32) {
    const PIECE: usize = 1 << 14;
    to.par_chunks_mut(PIECE).zip(add.par_chunks(PIECE)).for_each(|(to, add)| add_into(to, add, times));
}

impl<E: Element> Engine<E> for Unfused {
    fn scratch_bytes(&self, backward: bool) -> usize {
        let (t, u) = (self.t[1].len(), self.u[0].len());
        let forward = self.op.t_len(self.rows) + t + 2 * u + self.wide.len() + self.z.len();
        4 * (forward + if backward { t } else { 0 })
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        let (s, n) = (self.op.shape, self.rows);
        let (r, scale) = (s.width(), self.op.scale.get());
        let t = &mut set.t[..self.op.t_len(n)];
        let mut wide = std::mem::take(&mut self.wide);
        let x = Mat::new(in_float32(set.x.flat(), &mut wide), n * s.a_in(), s.c_in());
        let c = Mat::new(self.theta.c(), r, s.c_in());
        self.product(1.0, x, c.t(), Accum::Replace, MatMut::new(t, n * s.a_in(), r));
        self.wide = wide;
        self.outer(t);
        let mut z = std::mem::take(&mut self.z);
        let b = Mat::new(self.theta.b(), s.b_out(), r);
        let u = Mat::new(&self.u[0], n * s.a_out(), r);
        self.product(1.0, u, b.t(), Accum::Replace, MatMut::new(&mut z, n * s.a_out(), s.b_out()));
        add_all(set.y.flat_mut(), &z, scale);
        self.z = z;
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        let (s, n, scale) = (self.op.shape, self.rows, self.op.scale.get());
        let (a_out, a_in, r) = (s.a_out(), s.a_in(), s.width());
        let t = &set.t[..self.op.t_len(n)];
        self.outer(t);
        let mut grad = std::mem::take(&mut self.grad);
        let (da, rest) = grad.split_at_mut(s.a_len());
        let (db, dc) = rest.split_at_mut(s.b_len());
        let (mut wide, mut z) = (std::mem::take(&mut self.wide), std::mem::take(&mut self.z));
        let ([mut dt, t_mid], [mut u, mut u_mid]) =
            (std::mem::take(&mut self.t), std::mem::take(&mut self.u));
        let (b, c) = (Mat::new(self.theta.b(), s.b_out(), r), Mat::new(self.theta.c(), r, s.c_in()));
        let a = Mat::new(self.theta.a(), a_out, a_in);

        let dy = Mat::new(in_float32(set.dy.flat(), &mut wide), n * a_out, s.b_out());
        let out = MatMut::new(db, s.b_out(), r);
        self.product(scale, dy.t(), Mat::new(&u, n * a_out, r), Accum::Add, out);
        self.product(scale, dy, b, Accum::Replace, MatMut::new(&mut u, n * a_out, r));
        swap(&u, &mut u_mid, n, a_out, r);
        let du = Mat::new(&u_mid, a_out, n * r);
        let out = MatMut::new(da, a_out, a_in);
        self.product(1.0, du, Mat::new(&t_mid, a_in, n * r).t(), Accum::Add, out);
        let mut dt_mid = t_mid;
        self.product(1.0, a.t(), du, Accum::Replace, MatMut::new(&mut dt_mid, a_in, n * r));
        swap(&dt_mid, &mut dt, a_in, n, r);
        let x = Mat::new(in_float32(set.x.flat(), &mut wide), n * a_in, s.c_in());
        let dt_rows = Mat::new(&dt, n * a_in, r);
        self.product(1.0, dt_rows.t(), x, Accum::Add, MatMut::new(dc, r, s.c_in()));
        self.product(1.0, dt_rows, c, Accum::Replace, MatMut::new(&mut z, n * a_in, s.c_in()));
        add_all(set.dx.flat_mut(), &z, 1.0);

        (self.wide, self.z, self.t, self.u) = (wide, z, [dt, dt_mid], [u, u_mid]);
        self.grad = grad;
        Ok(())
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }
}
