//! `lora-gemm`: LoRA as products of a GEMM crate, each accumulating where it can.
//!
//! ```text
//! forward    T = X·Cᵀ      Y += s·T·Bᵀ
//! backward   dT = s·dY·B   dB += s·dYᵀ·T   dC += dTᵀ·X   dX += dT·C
//! ```

use kron_core::{Accum, Dtype, Element, KronOp, Result, Theta};
use rayon::prelude::*;

use crate::convert::{add_into, widen};
use crate::data::Set;
use crate::engine::{Engine, EngineConfig};
use crate::gemm::{GemmCrate, Mat, MatMut, product};

/// A GEMM crate, and how its work is shared out over the threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// The crate that multiplies.
    pub library: GemmCrate,
    /// True to share out blocks of rows here, each product on one thread;
    /// else products are whole and run on the crate's own threads.
    pub blocks: bool,
}

/// Rows of a block: with d_in = 4096, a float32 block of X is 512 KiB.
const BLOCK_ROWS: usize = 32;

/// Columns of a 16-bit block converted at a time, and of Y and dX computed: 128 KiB.
const PANEL: usize = 1024;

impl Strategy {
    /// Returns every strategy worth trying: a 16-bit dtype is always converted block by block.
    pub fn all(dtype: Dtype) -> Vec<Strategy> {
        let make = |blocks| move |library| Strategy { library, blocks };
        let blocks = GemmCrate::ALL.into_iter().map(make(true));
        match dtype {
            Dtype::F32 => blocks.chain(GemmCrate::ALL.into_iter().map(make(false))).collect(),
            Dtype::F16 | Dtype::Bf16 => blocks.collect(),
        }
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match (self.blocks, self.library.threads()) {
            (true, _) => "blocks of rows",
            (false, true) => "whole products, its own threads",
            (false, false) => "whole products, one thread",
        };
        write!(f, "{}, {how}", self.library.name())
    }
}

/// The block sizes of one pass.
#[derive(Clone, Copy)]
struct Blocking {
    library: GemmCrate,
    /// Threads of each product.
    threads: usize,
    /// Rows of a partition; each partition runs on one thread when `threads` is 1.
    part: usize,
    block: usize,
    panel: usize,
}

impl Blocking {
    fn new(strategy: Strategy, dtype: Dtype, rows: usize, threads: usize) -> Self {
        let panel = if dtype == Dtype::F32 { usize::MAX } else { PANEL };
        let library = strategy.library;
        if strategy.blocks {
            let part = rows.div_ceil(threads).next_multiple_of(BLOCK_ROWS).min(rows);
            Self { library, threads: 1, part, block: BLOCK_ROWS, panel }
        } else {
            Self { library, threads, part: rows, block: rows, panel }
        }
    }

    /// Returns (first, count) of the panels of `width` columns.
    fn panels(self, width: usize) -> impl Iterator<Item = (usize, usize)> {
        let step = self.panel.min(width);
        (0..width).step_by(step).map(move |first| (first, step.min(width - first)))
    }

    fn product(self, alpha: f32, a: Mat, b: Mat, accum: Accum, c: MatMut) {
        product(self.library, self.threads, alpha, a, b, accum, c);
    }

    /// Adds alpha·A·B to `out`, rounded once, through `scratch` where `out` is not float32.
    #[allow(clippy::too_many_arguments)]
    fn product_into<E: Element>(
        self,
        alpha: f32,
        a: Mat,
        b: Mat,
        out: &mut [E],
        (rows, cols, stride): (usize, usize, usize),
        scratch: &mut [f32],
    ) {
        if E::DTYPE == Dtype::F32 {
            let out = MatMut::strided(bytemuck::cast_slice_mut(out), rows, cols, stride);
            return self.product(alpha, a, b, Accum::Add, out);
        }
        let sum = &mut scratch[..rows * cols];
        self.product(alpha, a, b, Accum::Replace, MatMut::new(sum, rows, cols));
        for (out, sum) in out.chunks_mut(stride).zip(sum.chunks(cols)) {
            add_into(&mut out[..cols], sum, 1.0);
        }
    }
}

/// The buffers of one partition.
struct Part {
    /// A panel in float32, packed.
    panel: Vec<f32>,
    /// dT of a block.
    dt: Vec<f32>,
    /// \[dB | dC\].
    grad: Vec<f32>,
}

pub struct LoraGemm {
    op: KronOp,
    theta: Theta,
    grad: Vec<f32>,
    rows: usize,
    forward: Blocking,
    backward: Blocking,
    parts: Vec<Part>,
}

impl LoraGemm {
    pub fn new<E: Element>(
        (op, theta): (KronOp, Theta),
        forward: Strategy,
        backward: Strategy,
        config: &EngineConfig<E>,
    ) -> Self {
        let rows = config.rows;
        let blocking = |strategy| Blocking::new(strategy, E::DTYPE, rows, config.threads);
        let (forward, backward) = (blocking(forward), blocking(backward));
        let count = rows.div_ceil(forward.part).max(rows.div_ceil(backward.part));
        let panel = if E::DTYPE == Dtype::F32 { 0 } else { BLOCK_ROWS * PANEL };
        let dt = backward.block.min(rows) * op.shape.width();
        let part =
            |_| Part { panel: vec![0.0; panel], dt: vec![0.0; dt], grad: vec![0.0; op.shape.params()] };
        let grad = vec![0.0; op.shape.params()];
        Self { op, theta, grad, rows, forward, backward, parts: (0..count).map(part).collect() }
    }
}

/// Returns columns `first .. first + count` of rows of `d` elements, as float32.
fn load<'a, E: Element>(
    from: &'a [E],
    d: usize,
    (first, count): (usize, usize),
    scratch: &'a mut [f32],
) -> Mat<'a> {
    let rows = from.len() / d;
    if E::DTYPE == Dtype::F32 {
        return Mat::strided(&widen(from, &mut [])[first..], rows, count, d);
    }
    let to = &mut scratch[..rows * count];
    for (from, to) in from.chunks(d).zip(to.chunks_mut(count)) {
        widen(&from[first..first + count], to);
    }
    Mat::new(to, rows, count)
}

/// Returns columns `first .. first + count` of an r × d matrix.
fn columns(m: &[f32], r: usize, d: usize, (first, count): (usize, usize)) -> Mat<'_> {
    Mat::strided(&m[first..], r, count, d)
}

impl<E: Element> Engine<E> for LoraGemm {
    fn scratch_bytes(&self, backward: bool) -> usize {
        let part = |p: &Part| p.panel.len() + if backward { p.dt.len() + p.grad.len() } else { 0 };
        4 * (self.op.t_len(self.rows) + self.parts.iter().map(part).sum::<usize>())
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        let (blocking, scale, s) = (self.forward, self.op.scale.get(), self.op.shape);
        let (r, d_out, d_in) = (s.width(), s.d_out(), s.d_in());
        let (b, c) = (self.theta.b(), self.theta.c());
        let t = &mut set.t[..self.rows * r];
        (set.x.flat().par_chunks(blocking.part * d_in))
            .zip(set.y.flat_mut().par_chunks_mut(blocking.part * d_out))
            .zip(t.par_chunks_mut(blocking.part * r))
            .zip(&mut self.parts)
            .for_each(|(((x, y), t), part)| {
                let blocks = x.chunks(blocking.block * d_in).zip(y.chunks_mut(blocking.block * d_out));
                for ((x, y), t) in blocks.zip(t.chunks_mut(blocking.block * r)) {
                    let n = x.len() / d_in;
                    for panel in blocking.panels(d_in) {
                        let accum = if panel.0 == 0 { Accum::Replace } else { Accum::Add };
                        let x = load(x, d_in, panel, &mut part.panel);
                        blocking.product(1.0, x, columns(c, r, d_in, panel).t(), accum, MatMut::new(t, n, r));
                    }
                    let t = Mat::new(t, n, r);
                    for (first, count) in blocking.panels(d_out) {
                        let b = Mat::new(&b[first * r..], count, r).t();
                        let out = (n, count, d_out);
                        blocking.product_into(scale, t, b, &mut y[first..], out, &mut part.panel);
                    }
                }
            });
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        let (blocking, scale, s) = (self.backward, self.op.scale.get(), self.op.shape);
        let (r, d_out, d_in) = (s.width(), s.d_out(), s.d_in());
        let (b, c) = (self.theta.b(), self.theta.c());
        let used = self.rows.div_ceil(blocking.part);
        (set.x.flat().par_chunks(blocking.part * d_in))
            .zip(set.dy.flat().par_chunks(blocking.part * d_out))
            .zip(set.dx.flat_mut().par_chunks_mut(blocking.part * d_in))
            .zip(set.t[..self.rows * r].par_chunks(blocking.part * r))
            .zip(&mut self.parts[..used])
            .for_each(|((((x, dy), dx), t), Part { panel: scratch, dt, grad })| {
                grad.fill(0.0);
                let (db, dc) = grad.split_at_mut(s.b_len());
                let blocks = x.chunks(blocking.block * d_in).zip(dy.chunks(blocking.block * d_out));
                let blocks =
                    blocks.zip(dx.chunks_mut(blocking.block * d_in)).zip(t.chunks(blocking.block * r));
                for (((x, dy), dx), t) in blocks {
                    let n = x.len() / d_in;
                    for panel @ (first, count) in blocking.panels(d_out) {
                        let accum = if first == 0 { Accum::Replace } else { Accum::Add };
                        let dy = load(dy, d_out, panel, scratch);
                        let b = Mat::new(&b[first * r..], count, r);
                        blocking.product(scale, dy, b, accum, MatMut::new(&mut dt[..n * r], n, r));
                        let db = MatMut::new(&mut db[first * r..], count, r);
                        blocking.product(scale, dy.t(), Mat::new(t, n, r), Accum::Add, db);
                    }
                    let dt = Mat::new(&dt[..n * r], n, r);
                    for panel @ (first, count) in blocking.panels(d_in) {
                        let x = load(x, d_in, panel, scratch);
                        let dc = MatMut::strided(&mut dc[first..], r, count, d_in);
                        blocking.product(1.0, dt.t(), x, Accum::Add, dc);
                        let (c, out) = (columns(c, r, d_in, panel), (n, count, d_in));
                        blocking.product_into(1.0, dt, c, &mut dx[first..], out, scratch);
                    }
                }
            });
        for part in &self.parts[..used] {
            add_into(&mut self.grad, &part.grad, 1.0);
        }
        Ok(())
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }
}
