//! Calls over a group: random data, the float64 oracle's answer, and what a plain trainer computes.

use super::memory::{Host, Memory};
use super::{Answer, Case, Data, Float, Matrix, Sizes, close, random};
use kron_core::{Accum, Pass, Result, Theta};
use kron_kernels::{
    BackwardGroup, Cuda, DeviceGroup, DeviceSlice, DeviceSliceMut, DeviceTerm, ForwardGroup, Launcher,
};
use ndarray::Array2;

/// Terms as (a_out, a_in, b_out, c_in, rank) and the number of the output, with what all have in common.
#[derive(Clone, Copy, Debug)]
pub struct GroupCase {
    pub why: &'static str,
    pub terms: &'static [([usize; 5], usize)],
    pub rows: usize,
    pub pad: usize,
    pub dropout: u32,
    pub accumulate: bool,
    /// True if the last term drops nothing.
    pub unmasked: bool,
    /// True if a call is joined on a GPU of one multiprocessor, where launches cost little beside X.
    pub joined: bool,
}

pub const GROUPS: [GroupCase; 13] = [
    GroupCase {
        why: "q, k and v of the paper's shape",
        terms: &[([16, 2, 64, 128, 8], 0), ([4, 2, 64, 128, 8], 1), ([8, 2, 40, 128, 8], 2)],
        ..group(70, 0, 0, true, true)
    },
    GroupCase {
        why: "two LoRAs with one mask, whose stack has no padding",
        terms: &[([0, 1, 264, 520, 8], 0), ([0, 1, 200, 520, 8], 1)],
        ..group(130, 0, 9000, true, true)
    },
    GroupCase {
        why: "a sum of terms, one of which has no tensor cores",
        terms: &[([4, 3, 40, 136, 4], 0), ([2, 3, 80, 136, 8], 0), ([8, 3, 20, 136, 5], 0)],
        ..group(67, 0, 0, false, true)
    },
    GroupCase {
        why: "odd everything, in slices of c_in",
        terms: &[
            ([3, 5, 7, 301, 6], 0),
            ([2, 5, 13, 301, 4], 1),
            ([1, 5, 26, 301, 3], 1),
            ([7, 5, 3, 301, 2], 0),
        ],
        ..group(81, 1, 13107, true, true)
    },
    GroupCase {
        why: "a full inner factor",
        terms: &[([3, 2, 9, 264, 0], 0), ([2, 2, 21, 264, 6], 1), ([5, 2, 8, 264, 3], 2)],
        ..group(90, 0, 0, true, true)
    },
    GroupCase {
        why: "a stack of rank 64, in slices of c_in",
        terms: &[
            ([4, 2, 40, 264, 32], 0),
            ([2, 2, 72, 264, 16], 1),
            ([2, 2, 48, 264, 8], 2),
            ([2, 2, 24, 264, 4], 3),
        ],
        ..group(150, 8, 3000, false, true)
    },
    GroupCase {
        why: "a stack of rank 128",
        terms: &[([4, 2, 72, 520, 64], 0), ([2, 2, 72, 520, 32], 1), ([2, 2, 48, 520, 16], 2)],
        ..group(100, 0, 0, true, true)
    },
    GroupCase {
        why: "terms of different a_in",
        terms: &[([4, 2, 24, 64, 8], 0), ([4, 4, 24, 32, 8], 1), ([2, 2, 48, 64, 8], 0)],
        ..group(70, 0, 0, true, false)
    },
    GroupCase {
        why: "misaligned rows of tensor-core shapes",
        terms: &[([4, 2, 24, 136, 8], 0), ([2, 2, 48, 136, 8], 1), ([4, 2, 24, 136, 8], 0)],
        ..group(75, 1, 0, true, true)
    },
    GroupCase {
        why: "a stack above the ranks of tensor cores",
        terms: &[([2, 2, 72, 264, 64], 0), ([4, 2, 72, 264, 64], 1), ([4, 2, 72, 264, 16], 1)],
        ..group(66, 0, 0, false, false)
    },
    GroupCase {
        why: "eight terms of one sum",
        terms: &[([2, 2, 24, 136, 2], 0); 8],
        ..group(65, 0, 0, true, false)
    },
    GroupCase {
        why: "a mask that not all terms have",
        terms: &[([4, 2, 24, 136, 8], 0), ([2, 2, 48, 136, 8], 0), ([2, 2, 24, 136, 4], 1)],
        unmasked: true,
        ..group(72, 0, 9000, true, false)
    },
    GroupCase {
        why: "few rows",
        terms: &[([4, 2, 24, 64, 8], 0), ([2, 2, 32, 64, 8], 1), ([2, 2, 24, 64, 8], 2)],
        ..group(5, 0, 6000, true, false)
    },
];

const fn group(rows: usize, pad: usize, dropout: u32, accumulate: bool, joined: bool) -> GroupCase {
    GroupCase { why: "", terms: &[], rows, pad, dropout, accumulate, unmasked: false, joined }
}

/// A case's operands; each term has its own factors and gradient, and the Y, dY, X and dX of the group.
#[derive(Clone, Debug)]
pub struct Group<E> {
    pub of: GroupCase,
    pub terms: Vec<Data<E>>,
    pub x: Matrix<E>,
    pub ys: Vec<Matrix<E>>,
    pub dys: Vec<Matrix<E>>,
    pub dx: Matrix<E>,
    pub t: Vec<f32>,
    pub grads: Vec<Vec<f32>>,
    /// True if dX is not wanted.
    pub without_dx: bool,
    /// Elements that the scratch lacks, in forward and in backward.
    pub short: [usize; 2],
}

impl<E: Float> Group<E> {
    pub fn new(of: GroupCase) -> Self {
        let matrix = |cols, stream| Matrix::<E>::new(of.rows, cols, of.pad, &random(of.rows * cols, stream));
        let case = |[a_out, a_in, b_out, c_in, rank]: [usize; 5]| Case {
            why: of.why,
            sizes: Sizes { a_out, a_in, b_out, c_in, rank },
            rows: of.rows,
            pad: of.pad,
            dropout: of.dropout,
            accumulate: false,
        };
        let outputs = of.terms.iter().map(|&(_, output)| output + 1).max().expect("a term");
        let d_out =
            |output| of.terms.iter().find(|term| term.1 == output).map(|term| case(term.0).shape().d_out());
        let widths: Vec<usize> = (0..outputs).map(|output| d_out(output).expect("a term")).collect();
        let y =
            |stream: u32| widths.iter().zip(stream..).map(|(&d_out, stream)| matrix(d_out, stream)).collect();
        let (ys, dys): (Vec<_>, Vec<_>) = (y(20), y(40));
        let d_in = case(of.terms[0].0).shape().d_in();
        let (x, dx) = (matrix(d_in, 1), matrix(d_in, 4));
        let terms = of.terms.iter().enumerate().map(|(k, &(sizes, output))| Data {
            theta: Theta::random(case(sizes).shape(), 11 + k as u64),
            x: x.clone(),
            dy: dys[output].clone(),
            grad: random(case(sizes).shape().params(), 60 + k as u32),
            ..Data::new(case(sizes))
        });
        let mut terms: Vec<_> = terms.collect();
        if of.unmasked {
            terms.last_mut().expect("a term").case.dropout = 0;
        }
        let (t, grads) = (
            terms.iter().flat_map(|d| d.t.clone()).collect(),
            terms.iter().map(|d| d.grad.clone()).collect(),
        );
        Self { of, terms, x, ys, dys, dx, t, grads, without_dx: false, short: [0; 2] }
    }

    /// Runs forward and backward, with dX, on the emulator.
    pub fn run(self, on: &impl Launcher) -> Result<Self> {
        self.run_in(&Cuda::with(on), &Host)
    }

    /// Runs both with operands in a launcher's memory.
    pub fn run_in(mut self, cuda: &Cuda<impl Launcher>, memory: &impl Memory) -> Result<Self> {
        let accum = if self.of.accumulate { Accum::Add } else { Accum::Replace };
        let term = |(data, &(_, output)): (&Data<E>, &([usize; 5], usize))| {
            (data.case.op(), data.theta.clone(), output, data.case.key())
        };
        let held: Vec<_> = self.terms.iter().zip(self.of.terms).map(term).collect();
        let terms: Vec<_> = held
            .iter()
            .map(|(op, theta, output, key)| DeviceTerm {
                op: *op,
                theta: memory.read(theta.as_slice()),
                output: *output,
                dropout: *key,
            })
            .collect();
        let group = DeviceGroup::new(&terms)?;
        let len = |pass, short| cuda.group_workspace_len(&group, pass, self.of.rows).saturating_sub(short);
        let mut workspace = vec![f32::NAN; len(Pass::Forward, self.short[0])];
        let mut ys: Vec<_> = self.ys.iter_mut().map(|y| (y.rows_mut_in(memory), accum)).collect();
        let call = ForwardGroup {
            x: self.x.rows_in(memory),
            ys: &mut ys,
            t: memory.write(&mut self.t),
            workspace: memory.write(&mut workspace),
        };
        cuda.forward_group(&group, call)?;
        drop(ys);
        memory.settle()?;
        let mut workspace = vec![f32::NAN; len(Pass::Backward { dx: true }, self.short[1])];
        let dys: Vec<_> = self.dys.iter().map(|dy| dy.rows_in(memory)).collect();
        let mut grads: Vec<_> = self.grads.iter_mut().map(|grad| memory.write(grad)).collect();
        let call = BackwardGroup {
            x: self.x.rows_in(memory),
            t: memory.read(&self.t),
            dys: &dys,
            dx: (!self.without_dx).then(|| (self.dx.rows_mut_in(memory), accum)),
            grads: &mut grads,
            workspace: memory.write(&mut workspace),
        };
        cuda.backward_group(&group, call)?;
        drop(grads);
        memory.settle()?;
        Ok(self)
    }

    /// Runs single calls, one for each term, that add to Y and dX.
    pub fn run_one_by_one(mut self, on: &impl Launcher) -> Result<Self> {
        self.t.clear();
        for (k, &(_, output)) in self.of.terms.iter().enumerate() {
            let mut data = self.terms[k].clone();
            data.case.accumulate = true;
            (data.y, data.dx) = (self.ys[output].clone(), self.dx.clone());
            let done = data.run(on)?;
            (self.ys[output], self.dx, self.grads[k]) = (done.y, done.dx, done.grad);
            self.t.extend(done.t);
        }
        Ok(self)
    }

    /// Every output bit.
    pub fn bits(&self) -> Vec<u32> {
        let floats = self.t.iter().chain(self.grads.iter().flatten()).map(|v| v.to_bits());
        let matrices = self.ys.iter().chain([&self.dx]).flat_map(Matrix::bits);
        matrices.chain(floats).collect()
    }

    /// The answers of the terms; each output's and dX's last term has their sums.
    fn sums(
        &self,
        of: impl Fn(&Data<E>) -> Answer,
        round: impl Fn(f64) -> f64,
    ) -> (Vec<Answer>, Vec<Array2<f64>>, Array2<f64>) {
        let old = |m: &Matrix<E>| match self.of.accumulate {
            true => m.to_f64(),
            false => Array2::zeros((m.rows, m.cols)),
        };
        let (mut ys, mut dx) = (self.ys.iter().map(old).collect::<Vec<_>>(), old(&self.dx));
        let answers: Vec<_> = self.terms.iter().map(of).collect();
        for (answer, &(_, output)) in answers.iter().zip(self.of.terms) {
            ys[output].zip_mut_with(&answer.y, |sum, v| *sum = round(*sum + v));
            dx.zip_mut_with(&answer.dx, |sum, v| *sum = round(*sum + v));
        }
        (answers, ys, dx)
    }
}

/// Runs a case on the emulator and compares all outputs with the oracle, as a single call's are.
pub fn check<E: Float>(case: GroupCase, on: &impl Launcher) {
    check_run::<E>(case, |group| group.run(on));
}

/// Compares the outputs of a run with the oracle.
pub fn check_run<E: Float>(case: GroupCase, run: impl Fn(Group<E>) -> Result<Group<E>>) {
    let group = Group::<E>::new(case);
    let (reference, y, dx) = group.sums(Data::oracle, |v| v);
    let (plain, plain_y, plain_dx) = group.sums(Data::plain, |v| E::of(v as f32).to().into());
    let old_dx = group.dx.bits();
    let done = run(group).unwrap_or_else(|e| panic!("{case:?} {}: {e}", E::DTYPE.name()));
    done.bits(); // asserts that nothing was written between rows
    let name = |what: &str, k: usize| format!("{what} {k} of {} {}", E::DTYPE.name(), case.why);
    for (k, got) in done.ys.iter().enumerate() {
        close(&name("y", k), &got.to_f64(), &plain_y[k], &y[k], 2.0);
    }
    match done.without_dx {
        true => assert!(done.dx.bits() == old_dx, "dX of {}", case.why),
        false => close(&name("dx", 0), &done.dx.to_f64(), &plain_dx, &dx, 3.0),
    }
    let mut t = done.t.iter();
    for (k, data) in done.terms.iter().enumerate() {
        let got = Array2::from_shape_simple_fn(reference[k].t.dim(), || {
            f64::from(*t.next().expect("T of all terms"))
        });
        close(&name("t", k), &got, &plain[k].t, &reference[k].t, 2.0);
        let (shape, mut begin) = (data.case.shape(), 0);
        for (what, len) in [("dA", shape.a_len()), ("dB", shape.b_len()), ("dC", shape.c_len())] {
            let part = |m: &Array2<f64>| m.slice(ndarray::s![.., begin..begin + len]).to_owned();
            let got = Array2::from_shape_fn((1, done.grads[k].len()), |(_, i)| done.grads[k][i].into());
            if len > 0 {
                close(&name(what, k), &part(&got), &part(&plain[k].grad), &part(&reference[k].grad), 3.0);
            }
            begin += len;
        }
    }
}
