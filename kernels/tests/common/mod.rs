//! A case, its random data, the float64 oracle's answer and the error of the
//! plain same-dtype computation, from which tolerances derive.
#![allow(dead_code, unused_imports)] // every test binary uses its part

mod cases;
mod float;
pub mod group;
pub mod memory;
pub mod primitives;
pub mod segments;

pub use cases::{CASES, Case, Sizes, case_by_name};
pub use float::Float;
use kron_core::{
    Accum, Backend, Backward, Dropout, DropoutKey, Element, Forward, KronOp, KronShape, LayerDims, Merge,
    Pass, Result, Scale, Split, Theta, philox, reference,
};
use kron_kernels::{self as kk, Cuda};
use ndarray::Array2;

pub const SCALE: f32 = 1.75;
pub const SEED: u64 = 0x1234_5678_9abc_def1;
pub const OFFSET: u64 = 0x1_0000_0007;

impl Case {
    pub fn shape(&self) -> KronShape {
        let Sizes { a_out, a_in, b_out, c_in, rank } = self.sizes;
        match (a_out, rank) {
            (0, r) => KronShape::lora(LayerDims { d_out: b_out, d_in: c_in }, r),
            (_, 0) => {
                KronShape::krona(LayerDims { d_out: a_out * b_out, d_in: a_in * c_in }, Split { a_out, a_in })
            }
            (_, r) => KronShape::kron(
                LayerDims { d_out: a_out * b_out, d_in: a_in * c_in },
                Split { a_out, a_in },
                r,
            ),
        }
        .expect("the suite's sizes are legal")
    }

    pub fn op(&self) -> KronOp {
        KronOp::new(self.shape(), Scale::new(SCALE).expect("finite")).with_dropout(self.probability())
    }

    fn probability(&self) -> Dropout {
        Dropout::new(self.dropout as f32 / 65536.0).expect("a probability")
    }

    pub fn key(&self) -> Option<DropoutKey> {
        (self.dropout > 0).then_some(DropoutKey { seed: SEED, offset: OFFSET })
    }

    pub fn accum(&self) -> Accum {
        if self.accumulate { Accum::Add } else { Accum::Replace }
    }

    /// Returns κ for kept elements of X and 0 for dropped ones.
    pub fn mask(&self) -> Array2<f64> {
        let d_in = self.shape().d_in();
        let p = self.probability();
        let key = DropoutKey { seed: SEED, offset: OFFSET };
        Array2::from_shape_fn((self.rows, d_in), |(row, col)| match p.keeps(key, d_in, row, col) {
            true => p.keep_scale().into(),
            false => 0.0,
        })
    }
}

/// Returns `len` values in (−1, 1) from a counter; equal streams give equal bits.
pub fn random(len: usize, stream: u32) -> Vec<f32> {
    let word = |i: usize| philox([(i / 4) as u32, stream, 7, 9], [3, 5])[i % 4];
    (0..len).map(|i| ((word(i) >> 9) as f32 + 0.5) / (1u32 << 22) as f32 - 1.0).collect()
}

/// A matrix in memory: 16-byte aligned start, rows `stride` apart, NaN between them.
#[derive(Clone, Debug)]
pub struct Matrix<E> {
    memory: Vec<E>,
    start: usize,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<E: Float> Matrix<E> {
    pub fn new(rows: usize, cols: usize, pad: usize, values: &[f32]) -> Self {
        let stride = cols + pad;
        let memory = vec![E::of(f32::NAN); rows.max(1) * stride + 16];
        let start = memory.as_ptr().align_offset(16);
        let mut m = Self { memory, start, rows, cols, stride };
        for row in 0..rows {
            for col in 0..cols {
                m.memory[start + row * stride + col] = E::of(values[row * cols + col]);
            }
        }
        m
    }
    fn len(&self) -> usize {
        if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols }
    }
    pub fn rows(&self) -> kk::Rows<'_, E> {
        self.rows_in(&memory::Host)
    }
    pub fn rows_mut(&mut self) -> kk::RowsMut<'_, E> {
        self.rows_mut_in(&memory::Host)
    }
    /// The same in a launcher's memory.
    pub fn rows_in<'a>(&'a self, memory: &'a impl memory::Memory) -> kk::Rows<'a, E> {
        let data = memory.read(&self.memory[self.start..self.start + self.len()]);
        kk::Rows { data, rows: self.rows, stride: self.stride }
    }
    pub fn rows_mut_in<'a>(&'a mut self, memory: &'a impl memory::Memory) -> kk::RowsMut<'a, E> {
        let len = self.len();
        let data = memory.write(&mut self.memory[self.start..self.start + len]);
        kk::RowsMut { data, rows: self.rows, stride: self.stride }
    }
    pub fn to_f64(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.rows, self.cols), |(r, c)| {
            self.memory[self.start + r * self.stride + c].to().into()
        })
    }
    /// Bits of the values; panics if anything was written between the rows.
    pub fn bits(&self) -> Vec<u32> {
        let at = |i: usize| self.memory[self.start + i];
        for i in (0..self.len()).filter(|i| i % self.stride >= self.cols) {
            assert!(at(i).to().is_nan(), "element {i} lies between rows and was written");
        }
        let inside = (0..self.len()).filter(|i| i % self.stride < self.cols);
        inside.map(|i| at(i).bits()).collect()
    }
}

/// Everything that one case computes.
#[derive(Clone, Debug)]
pub struct Answer {
    pub t: Array2<f64>,
    pub y: Array2<f64>,
    pub dx: Array2<f64>,
    pub grad: Array2<f64>,
    pub w: Array2<f64>,
}

/// A case's inputs.
#[derive(Clone, Debug)]
pub struct Data<E> {
    pub case: Case,
    pub theta: Theta,
    pub x: Matrix<E>,
    pub y: Matrix<E>,
    pub dy: Matrix<E>,
    pub dx: Matrix<E>,
    pub w: Matrix<E>,
    pub grad: Vec<f32>,
    pub t: Vec<f32>,
}

impl<E: Float> Data<E> {
    pub fn new(case: Case) -> Self {
        let (shape, n) = (case.shape(), case.rows);
        let (d_in, d_out) = (shape.d_in(), shape.d_out());
        let matrix = |rows, cols, stream| Matrix::new(rows, cols, case.pad, &random(rows * cols, stream));
        Self {
            case,
            theta: Theta::random(shape, 11),
            x: matrix(n, d_in, 1),
            y: matrix(n, d_out, 2),
            dy: matrix(n, d_out, 3),
            dx: matrix(n, d_in, 4),
            w: matrix(d_out, d_in, 5),
            grad: random(shape.params(), 6),
            t: vec![f32::NAN; n * shape.a_in() * shape.width()],
        }
    }

    /// The float64 oracle.
    pub fn oracle(&self) -> Answer {
        let (op, theta, mask) = (self.case.op(), &self.theta, self.case.mask());
        let shape = op.shape;
        let x = self.x.to_f64() * &mask;
        let old = |m: &Matrix<E>| match self.case.accumulate {
            true => m.to_f64(),
            false => Array2::zeros((m.rows, m.cols)),
        };
        let back = reference::backward(&op, theta, x.view(), self.dy.to_f64().view());
        let c = Array2::from_shape_fn((shape.width(), shape.c_in()), |(q, k)| {
            f64::from(theta.c()[q * shape.c_in() + k])
        });
        let blocks = x.clone().into_shape_with_order((self.case.rows * shape.a_in(), shape.c_in()));
        Answer {
            t: blocks.expect("a row is a_in × c_in").dot(&c.t()),
            y: old(&self.y) + reference::forward(&op, theta, x.view()),
            dx: old(&self.dx) + back.dx * mask,
            grad: Array2::from_shape_fn((1, self.grad.len()), |(_, i)| {
                f64::from(self.grad[i]) + back.theta[i]
            }),
            w: old(&self.w) + reference::delta_weight(&op, theta),
        }
    }

    /// Computes as a plain trainer does: one loop per formula, operands and every
    /// intermediate rounded to E, sums in float32.
    pub fn plain(&self) -> Answer {
        let (shape, n, accumulate) = (self.case.shape(), self.case.rows, self.case.accumulate);
        let (ao, ai, bo, ci, r) = (shape.a_out(), shape.a_in(), shape.b_out(), shape.c_in(), shape.width());
        let round = |v: f32| E::of(v).to();
        let rounded = |v: &[f32]| v.iter().map(|&v| round(v)).collect::<Vec<_>>();
        let (a, c) = (rounded(self.theta.a()), rounded(self.theta.c()));
        let b = match shape.rank() {
            Some(_) => rounded(self.theta.b()),
            None => (0..bo * bo).map(|i| if i / bo == i % bo { 1.0 } else { 0.0 }).collect(),
        };
        let mask = self.case.mask();
        let mut x = self.x.to_f64();
        x.zip_mut_with(&mask, |x, m| *x = round((*x * m) as f32).into());
        let (x, dy) = (x.mapv(|v| v as f32), self.dy.to_f64().mapv(|v| v as f32));
        let (y0, dx0, w0) = (self.y.to_f64(), self.dx.to_f64(), self.w.to_f64());
        let old = |m: &Array2<f64>, v: f32, at: (usize, usize)| match accumulate {
            true => round(m[at] as f32 + v),
            false => round(v),
        };
        let sum = |len: usize, f: &dyn Fn(usize) -> f32| (0..len).fold(0.0f32, |s, k| s + f(k));
        let t = Array2::from_shape_fn((n * ai, r), |(m, q)| {
            round(sum(ci, &|k| x[(m / ai, m % ai * ci + k)] * c[q * ci + k]))
        });
        let u = Array2::from_shape_fn((n * ao, r), |(m, q)| {
            round(sum(ai, &|j| a[m % ao * ai + j] * t[(m / ao * ai + j, q)]))
        });
        let yo = Array2::from_shape_fn((n, ao * bo), |(n, o)| {
            round(SCALE * sum(r, &|q| u[(n * ao + o / bo, q)] * b[o % bo * r + q]))
        });
        let du = Array2::from_shape_fn((n * ao, r), |(m, q)| {
            round(SCALE * sum(bo, &|p| dy[(m / ao, m % ao * bo + p)] * b[p * r + q]))
        });
        let dt = Array2::from_shape_fn((n * ai, r), |(m, q)| {
            round(sum(ao, &|i| a[i * ai + m % ai] * du[(m / ai * ao + i, q)]))
        });
        let mut grad = Vec::new();
        for e in 0..shape.a_len() {
            let (i, j) = (e / ai, e % ai);
            grad.push(sum(n * r, &|k| du[(k / r * ao + i, k % r)] * t[(k / r * ai + j, k % r)]));
        }
        for e in 0..shape.b_len() {
            let (p, q) = (e / r, e % r);
            grad.push(SCALE * sum(n * ao, &|m| dy[(m / ao, m % ao * bo + p)] * u[(m, q)]));
        }
        for e in 0..shape.c_len() {
            let (q, k) = (e / ci, e % ci);
            grad.push(sum(n * ai, &|m| dt[(m, q)] * x[(m / ai, m % ai * ci + k)]));
        }
        let dxo = Array2::from_shape_fn((n, ai * ci), |(n, col)| {
            sum(r, &|q| dt[(n * ai + col / ci, q)] * c[q * ci + col % ci]) * mask[(n, col)] as f32
        });
        let bc = Array2::from_shape_fn((bo, ci), |(p, k)| round(sum(r, &|q| b[p * r + q] * c[q * ci + k])));
        let wide = |m: Array2<f32>| m.mapv(f64::from);
        Answer {
            t: wide(t),
            y: wide(Array2::from_shape_fn(yo.dim(), |at| old(&y0, yo[at], at))),
            dx: wide(Array2::from_shape_fn(dxo.dim(), |at| old(&dx0, dxo[at], at))),
            grad: wide(Array2::from_shape_fn((1, grad.len()), |(_, i)| self.grad[i] + round(grad[i]))),
            w: wide(Array2::from_shape_fn((ao * bo, ai * ci), |(o, col)| {
                let delta = round(SCALE * round(a[o / bo * ai + col / ci] * bc[(o % bo, col % ci)]));
                old(&w0, delta, (o, col))
            })),
        }
    }

    /// Runs forward, backward and merge through a launcher.
    pub fn run(self, on: &impl kk::Launcher) -> Result<Self> {
        let key = self.case.key();
        self.run_with(&Cuda::with(on), key)
    }

    /// Runs forward, backward and merge with a key of dropout.
    pub fn run_with(mut self, cuda: &Cuda<impl kk::Launcher>, dropout: Option<DropoutKey>) -> Result<Self> {
        let case = self.case;
        let (op, accum) = (case.op(), case.accum());
        let scratch = |pass| vec![f32::NAN; cuda.workspace_len(&op, pass, case.rows)];
        let mut workspace = scratch(Pass::Forward);
        let call = Forward {
            theta: kk::DeviceSlice::host(self.theta.as_slice()),
            x: self.x.rows(),
            y: self.y.rows_mut(),
            accum,
            t: kk::DeviceSliceMut::host(&mut self.t),
            workspace: kk::DeviceSliceMut::host(&mut workspace),
            dropout,
        };
        cuda.forward(&op, call)?;
        let mut workspace = scratch(Pass::Backward { dx: true });
        let call = Backward {
            theta: kk::DeviceSlice::host(self.theta.as_slice()),
            x: self.x.rows(),
            t: kk::DeviceSlice::host(&self.t),
            dy: self.dy.rows(),
            dx: Some((self.dx.rows_mut(), accum)),
            grad: kk::DeviceSliceMut::host(&mut self.grad),
            workspace: kk::DeviceSliceMut::host(&mut workspace),
            dropout,
        };
        cuda.backward(&op, call)?;
        let call = Merge {
            theta: kk::DeviceSlice::host(self.theta.as_slice()),
            w: self.w.rows_mut(),
            first_row: 0,
            accum,
            workspace: kk::DeviceSliceMut::host(&mut []),
        };
        cuda.merge(&op, call)?;
        Ok(self)
    }

    /// Returns the outputs as float64.
    pub fn answer(&self) -> Answer {
        let shape = self.case.shape();
        let dim = (self.case.rows * shape.a_in(), shape.width());
        Answer {
            t: Array2::from_shape_fn(dim, |(m, q)| f64::from(self.t[m * dim.1 + q])),
            y: self.y.to_f64(),
            dx: self.dx.to_f64(),
            grad: Array2::from_shape_fn((1, self.grad.len()), |(_, i)| self.grad[i].into()),
            w: self.w.to_f64(),
        }
    }

    /// Every output bit.
    pub fn bits(&self) -> Vec<u32> {
        let floats = self.t.iter().chain(&self.grad).map(|v| v.to_bits());
        [self.y.bits(), self.dx.bits(), self.w.bits(), floats.collect()].concat()
    }
}

/// Fails if the error of `got` exceeds `factor` times that of the plain computation,
/// or float32's own rounding where that is coarser.
pub fn close(what: &str, got: &Array2<f64>, plain: &Array2<f64>, reference: &Array2<f64>, factor: f64) {
    assert_eq!(got.dim(), reference.dim(), "{what}");
    let worst = |m: &Array2<f64>| m.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let size = reference.iter().fold(0.0f64, |s, v| s.max(v.abs()));
    assert!(reference.is_empty() || size > 1e-3, "{what}: the oracle's answer is about 0");
    let nan = got.iter().filter(|v| v.is_nan()).count();
    assert_eq!(nan, 0, "{what}: {nan} of {} values are NaN", got.len());
    let (error, bound) = (worst(got), factor * worst(plain).max(4.0 * size / (1u64 << 24) as f64));
    assert!(error <= bound, "{what}: error {error:.3e}, but {factor} × the plain error is {bound:.3e}");
}

/// Runs a case and compares all outputs with the oracle.
pub fn check<E: Float>(case: Case, on: &impl kk::Launcher) {
    let data = Data::<E>::new(case);
    let (reference, plain) = (data.oracle(), data.plain());
    let done = data.run(on).unwrap_or_else(|e| panic!("{case:?} {}: {e}", E::DTYPE.name()));
    done.bits(); // asserts that nothing was written between rows
    let got = done.answer();
    let name = |what: &str| format!("{what} of {} {case:?}", E::DTYPE.name());
    close(&name("t"), &got.t, &plain.t, &reference.t, 2.0);
    close(&name("y"), &got.y, &plain.y, &reference.y, 2.0);
    close(&name("dx"), &got.dx, &plain.dx, &reference.dx, 3.0);
    close(&name("w"), &got.w, &plain.w, &reference.w, 2.0);
    // A, B and C have different magnitudes: each is held to its own error.
    let shape = case.shape();
    let mut begin = 0;
    for (what, len) in [("dA", shape.a_len()), ("dB", shape.b_len()), ("dC", shape.c_len())] {
        let part = |m: &Array2<f64>| m.slice(ndarray::s![.., begin..begin + len]).to_owned();
        if len > 0 {
            close(&name(what), &part(&got.grad), &part(&plain.grad), &part(&reference.grad), 3.0);
        }
        begin += len;
    }
}
