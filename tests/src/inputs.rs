//! Seeded random problems: the operands of one forward and one backward call.

use kron_core::{DropoutKey, Element, KronOp, Theta};
use ndarray::Array2;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use crate::answer::Answer;
use crate::cases::Case;

/// One op with its operands. Activations are already rounded to their dtype,
/// so every engine starts from the same values.
#[derive(Clone, Debug)]
pub struct Problem<E> {
    /// Shape, scale and dropout.
    pub op: KronOp,
    /// θ.
    pub theta: Theta,
    /// The mask's key.
    pub key: Option<DropoutKey>,
    /// X, n × d_in.
    pub x: Array2<E>,
    /// dY, n × d_out.
    pub dy: Array2<E>,
    /// Row stride minus width of every matrix that is passed to a backend.
    pub pad: usize,
}

impl<E: Element> Problem<E> {
    /// The `draw`-th random problem of a case.
    pub fn of_case(case: &Case, rows: usize, draw: u64) -> Self {
        let mut problem = Self::random(case.op(), rows, draw);
        problem.key = case.key();
        problem.pad = case.pad;
        problem
    }

    /// X and dY uniform in (−1, 1), every factor of θ random, no dropout key, no padding.
    pub fn random(op: KronOp, rows: usize, seed: u64) -> Self {
        let s = op.shape;
        Self {
            op,
            theta: Theta::random(s, seed ^ 0x7e7a),
            key: None,
            x: uniform(rows, s.d_in(), 1.0, seed ^ 0x0a),
            dy: uniform(rows, s.d_out(), 1.0, seed ^ 0xd0),
            pad: 0,
        }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.x.nrows()
    }

    /// Returns true where dropout keeps element (row, col) of X.
    pub fn keeps(&self, row: usize, col: usize) -> bool {
        self.key.is_none_or(|key| self.op.dropout.keeps(key, self.op.shape.d_in(), row, col))
    }

    /// Factor of a kept element, 1 / (1 − p); 1 in evaluation.
    pub fn keep_scale(&self) -> f64 {
        if self.key.is_none() { 1.0 } else { 1.0 / (1.0 - f64::from(self.op.dropout.probability())) }
    }
}

/// Contents of the outputs before a call that adds to them: as large as the sum that is
/// added, so that neither hides in the other's rounding.
#[derive(Clone, Debug)]
pub struct Old<E> {
    /// Y, n × d_out.
    pub y: Array2<E>,
    /// dX, n × d_in.
    pub dx: Array2<E>,
    /// \[dA | dB | dC\].
    pub grad: Vec<f32>,
}

impl<E: Element> Old<E> {
    /// Old contents for outputs that are to grow by `answer`.
    pub fn like(answer: &Answer, seed: u64) -> Self {
        let sizes = [rms(&answer.y), rms(&answer.dx), rms(&answer.grad)];
        Self::of_dims(answer.y.dim(), answer.dx.dim(), answer.grad.len(), sizes, seed)
    }

    /// Old contents in (−1, 1) for a problem's outputs.
    pub fn for_problem(p: &Problem<E>, seed: u64) -> Self {
        Self::of_dims(p.dy.dim(), p.x.dim(), p.op.shape.params(), [1.0; 3], seed)
    }

    fn of_dims(y: (usize, usize), dx: (usize, usize), params: usize, sizes: [f64; 3], seed: u64) -> Self {
        Self {
            y: uniform(y.0, y.1, sizes[0], seed ^ 0x01d),
            dx: uniform(dx.0, dx.1, sizes[1], seed ^ 0xd1d),
            grad: uniform(1, params, sizes[2], seed ^ 0x9e).into_raw_vec_and_offset().0,
        }
    }
}

/// Uniform in (−k, k), rounded to the dtype; equal seeds, equal bits.
pub fn uniform<E: Element>(rows: usize, cols: usize, k: f64, seed: u64) -> Array2<E> {
    let mut rng = Pcg64Mcg::new(u128::from(seed) << 64 | 0xcafe_f00d_d15e_a5e5);
    Array2::from_shape_simple_fn((rows, cols), || E::from_f32((k * rng.random_range(-1.0..1.0)) as f32))
}

fn rms<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0f64);
    for v in values {
        sum += v * v;
        n += 1.0;
    }
    (sum / n.max(1.0)).sqrt()
}
