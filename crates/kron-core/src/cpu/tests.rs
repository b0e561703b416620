//! Workspaces of random legal problems: their pieces are disjoint, calls run with exactly
//! `workspace_len` elements, and results do not depend on the workspace's memory.

use std::ops::Range;

use half::{bf16, f16};
use ndarray::Array2;

use super::device::Cpu;
use super::{backward, forward, merge};
use crate::dropout::philox;
use crate::simd::Isa;
use crate::{
    Accum, Backend, Backward, Dropout, DropoutKey, Element, Forward, Inner, KronOp, KronShape, LayerDims,
    Merge, Outer, Pass, Result, Scale, Split, Theta,
};

/// Random problems that run; few under Miri, which is slow.
const CASES: u32 = if cfg!(miri) { 3 } else { 60 };

/// One random problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    op: KronOp,
    rows: usize,
    key: Option<DropoutKey>,
    dx: bool,
    accum: Accum,
}

impl Case {
    /// Returns case `i`, with up to `max_rows` rows.
    fn random(i: u32, max_rows: usize) -> Self {
        let bits: Vec<u32> = (0..4).flat_map(|block| philox([i, block, 0, 0], [7, 0])).collect();
        let upto = |k: usize, max: usize| 1 + bits[k] as usize % max;
        let (a_out, a_in) = if bits[0].is_multiple_of(3) { (1, 1) } else { (upto(1, 9), upto(2, 9)) };
        let outer = if bits[0].is_multiple_of(3) { Outer::One } else { Outer::Trained };
        let inner = if bits[0] % 3 == 1 { Inner::Full } else { Inner::LowRank(upto(3, 20)) };
        let (d_out, d_in) = (a_out * upto(4, 80), a_in * upto(5, 300));
        let shape =
            KronShape::new(LayerDims { d_out, d_in }, Split { a_out, a_in }, outer, inner).expect("legal");
        let p = if bits[6].is_multiple_of(2) { 0.0 } else { 0.25 };
        Case {
            op: KronOp::new(shape, Scale::new(1.5).expect("finite"))
                .with_dropout(Dropout::new(p).expect("legal")),
            rows: if bits[7].is_multiple_of(4) { upto(8, max_rows) } else { bits[8] as usize % 20 },
            key: (!bits[9].is_multiple_of(3)).then_some(DropoutKey { seed: 3, offset: u64::from(i) }),
            dx: !bits[10].is_multiple_of(4),
            accum: if bits[11].is_multiple_of(2) { Accum::Replace } else { Accum::Add },
        }
    }

    /// Rows of the weight that the case merges.
    fn merge_rows(&self) -> usize {
        self.rows.min(self.op.shape.d_out())
    }
}

fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[test]
fn pieces_are_disjoint_and_fill_the_workspace() {
    for i in 0..5 * CASES {
        let Case { op, rows, dx, .. } = Case::random(i, 1 << 20);
        for isa in instruction_sets() {
            let what = format!("{op:?}, {rows} rows, {isa}");
            let forward = forward::layout(isa, &op, rows);
            check_pieces(forward.ranges(), forward.workspace_len(), &what);
            let backward = backward::layout(isa, &op, rows, dx);
            check_pieces(backward.call.ranges(), backward.call.workspace_len(), &what);
            check_pieces(backward.gradient.ranges(0).collect(), backward.gradient.len(), &what);
            let merge = merge::layout(isa, &op, rows);
            check_pieces(merge.ranges(), merge.workspace_len(), &what);
        }
    }
}

/// Panics unless the pieces follow each other, each from the next cache line on, up to `len`.
fn check_pieces(pieces: Vec<(&'static str, Range<usize>)>, len: usize, what: &str) {
    let mut end: usize = 0;
    for (name, piece) in pieces {
        assert!(piece.start % 16 == 0 && piece.start >= end, "{what}: {name} overlaps");
        assert!(piece.start - end <= 16, "{what}: a gap before {name}");
        end = piece.end;
    }
    assert!(end <= len && len - end <= 2 * 16, "{what}: the pieces end at {end} of {len}");
}

#[test]
fn calls_run_with_exactly_workspace_len_elements() {
    let mut partitioned = [0, 0];
    for i in 0..CASES {
        let case = Case::random(i, 250);
        let backward = backward::layout(Isa::Portable, &case.op, case.rows, case.dx).call.partition;
        let forward = forward::layout(Isa::Portable, &case.op, case.rows).partition;
        partitioned[0] += usize::from(forward.parts > 1);
        partitioned[1] += usize::from(backward.parts > 1);
        for isa in instruction_sets() {
            let cpu = Cpu { isa };
            run::<f32>(cpu, case);
            run::<f16>(cpu, case);
            run::<bf16>(cpu, case);
        }
    }
    assert!(cfg!(miri) || partitioned.into_iter().all(|cases| cases > 0), "{partitioned:?}");
}

/// Runs the three passes in exact and in large workspaces and compares all bits.
fn run<E: Element>(cpu: Cpu, case: Case) {
    let (mut want, mut got) = (Buffers::<E>::new(&case), Buffers::<E>::new(&case));
    let backward = Pass::Backward { dx: case.dx };
    for (pass, rows) in [(Pass::Forward, case.rows), (backward, case.rows), (Pass::Merge, case.merge_rows())]
    {
        let len = cpu.workspace_len(&case.op, pass, rows);
        let mut large = vec![0.0; 2 * len];
        want.call(cpu, &case, pass, &mut large).expect("a legal call");
        assert!(got.call(cpu, &case, pass, &mut large[..len - 1]).is_err(), "{pass:?} of {case:?}");
        // Cases start at every place of a cache line in turn.
        let start = case.rows % 16;
        let mut exact = vec![f32::NAN; len + start];
        got.call(cpu, &case, pass, &mut exact[start..]).expect("a legal call");
        assert!(got.bits() == want.bits(), "{pass:?} of {case:?} on {cpu:?}");
    }
    assert!(case.rows == 0 || want.t.iter().all(|v| v.is_finite()), "{case:?}");
}

/// Everything that the three passes read and write.
struct Buffers<E> {
    theta: Theta,
    x: Array2<E>,
    y: Array2<E>,
    dy: Array2<E>,
    dx: Array2<E>,
    w: Array2<E>,
    t: Vec<f32>,
    grad: Vec<f32>,
}

impl<E: Element> Buffers<E> {
    fn new(case: &Case) -> Self {
        let shape = case.op.shape;
        let matrix = |rows, cols, step: usize| {
            Array2::from_shape_fn((rows, cols), |(i, j)| {
                E::from_f32(((i * 7 + j * 3 + step) % 23) as f32 / 8.0 - 1.25)
            })
        };
        Self {
            theta: Theta::random(shape, 5),
            x: matrix(case.rows, shape.d_in(), 0),
            y: matrix(case.rows, shape.d_out(), 1),
            dy: matrix(case.rows, shape.d_out(), 2),
            dx: matrix(case.rows, shape.d_in(), 3),
            w: matrix(case.merge_rows(), shape.d_in(), 4),
            t: vec![0.0; case.op.t_len(case.rows)],
            grad: vec![0.5; shape.params()],
        }
    }

    /// Bytes of everything that a pass writes.
    fn bits(&self) -> [&[u8]; 5] {
        let [y, dx, w] = [&self.y, &self.dx, &self.w].map(|m| m.as_slice().expect("contiguous"));
        let cast = bytemuck::cast_slice::<E, u8>;
        [cast(y), cast(dx), cast(w), bytemuck::cast_slice(&self.t), bytemuck::cast_slice(&self.grad)]
    }

    fn call(&mut self, cpu: Cpu, case: &Case, pass: Pass, workspace: &mut [f32]) -> Result<()> {
        let &Case { op, key: dropout, accum, .. } = case;
        let (theta, x) = (self.theta.as_slice(), self.x.view());
        match pass {
            Pass::Forward => {
                let (y, t) = (self.y.view_mut(), &mut self.t[..]);
                cpu.forward(&op, Forward { theta, x, y, accum, t, workspace, dropout })
            }
            Pass::Backward { .. } => {
                let dx = case.dx.then_some((self.dx.view_mut(), accum));
                let (t, dy, grad) = (&self.t[..], self.dy.view(), &mut self.grad[..]);
                cpu.backward(&op, Backward { theta, x, t, dy, dx, grad, workspace, dropout })
            }
            Pass::Merge => {
                let first_row = op.shape.d_out() - self.w.nrows();
                cpu.merge(&op, Merge { theta, w: self.w.view_mut(), first_row, accum, workspace })
            }
        }
    }
}
