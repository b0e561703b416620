//! `merge-per-step`: ΔW goes into the weight before every step, so that the
//! base product computes the adapter's output and its dX at no extra cost.
//!
//! Forward is the merge alone. Taking ΔW out again, or keeping a clean copy of
//! W, is not counted. Backward computes θ's gradient from the factors: first
//! T = X·Cᵀ, which forward does not compute here, then kron-core's backward
//! without dX.

use std::sync::Arc;

use kron_core::{Accum, Backend, Backward, Cpu, Element, KronOp, Merge, Pass, Result, Theta};
use ndarray::Array2;
use rayon::prelude::*;

use crate::convert::widen;
use crate::data::Set;
use crate::engine::{Engine, EngineConfig};
use crate::gemm::{GemmCrate, Mat, MatMut, product};

/// Rows of X that one thread converts and multiplies at a time.
const BLOCK_ROWS: usize = 32;

pub struct MergeEngine<E> {
    cpu: Cpu,
    op: KronOp,
    theta: Theta,
    grad: Vec<f32>,
    rows: usize,
    weight: Array2<E>,
    workspace: Vec<f32>,
}

impl<E: Element> MergeEngine<E> {
    pub fn new((op, theta): (KronOp, Theta), weight: Arc<Array2<E>>, config: &EngineConfig<E>) -> Self {
        let merge = config.cpu.workspace_len(&op, Pass::Merge, op.shape.d_out());
        let backward = config.cpu.workspace_len(&op, Pass::Backward { dx: false }, config.rows);
        Self {
            cpu: config.cpu,
            grad: vec![0.0; op.shape.params()],
            rows: config.rows,
            weight: Array2::clone(&weight),
            workspace: vec![0.0; merge.max(backward)],
            op,
            theta,
        }
    }
}

impl<E: Element> Engine<E> for MergeEngine<E> {
    fn scratch_bytes(&self, backward: bool) -> usize {
        let merge = self.cpu.workspace_len(&self.op, Pass::Merge, self.op.shape.d_out());
        let both = self.op.t_len(self.rows) + self.workspace.len();
        4 * if backward { both } else { merge }
    }

    fn forward(&mut self, _: &mut Set<E>) -> Result<()> {
        let call = Merge {
            theta: self.theta.as_slice(),
            w: self.weight.view_mut(),
            first_row: 0,
            accum: Accum::Add,
            workspace: self.workspace.as_mut_slice(),
        };
        self.cpu.merge(&self.op, call)
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        let s = self.op.shape;
        let t = &mut set.t[..self.op.t_len(self.rows)];
        let c = Mat::new(self.theta.c(), s.width(), s.c_in());
        (set.x.flat().par_chunks(BLOCK_ROWS * s.d_in()))
            .zip(t.par_chunks_mut(BLOCK_ROWS * s.a_in() * s.width()))
            .for_each_init(Vec::new, |scratch, (x, t)| {
                scratch.resize(x.len(), 0.0);
                let n = x.len() / s.c_in();
                let x = Mat::new(widen(x, scratch), n, s.c_in());
                product(GemmCrate::Gemm, 1, 1.0, x, c.t(), Accum::Replace, MatMut::new(t, n, s.width()));
            });
        let call = Backward {
            theta: self.theta.as_slice(),
            x: set.x.view(),
            t: &*t,
            dy: set.dy.view(),
            dx: None,
            grad: self.grad.as_mut_slice(),
            workspace: self.workspace.as_mut_slice(),
            dropout: None,
        };
        self.cpu.backward(&self.op, call)
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }

    fn weight(&self) -> Option<&Array2<E>> {
        Some(&self.weight)
    }
}
