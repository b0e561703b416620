//! Workspaces of random legal problems: their pieces are disjoint, calls run with exactly the elements
//! of their layout, `workspace_len` suffices for every shorter call, and results do not depend on the
//! workspace's memory.

use std::ops::Range;

use half::{bf16, f16};
use ndarray::Array2;

use super::device::Cpu;
use super::partition::{Partitioned, RowPartition};
use super::team::Team;
use super::{backward, forward, merge};
use crate::dropout::philox;
use crate::simd::Isa;
use crate::{
    Accum, AdapterPool, Backend, Backward, BackwardSegments, Dropout, DropoutKey, Element, Forward,
    ForwardSegments, Inner, KronOp, KronShape, LayerDims, Merge, Outer, Pass, PoolEntry, Result, Scale,
    Split, Theta,
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

/// The partition of a call over `rows` rows.
fn partition(op: &KronOp, pass: Pass, rows: usize) -> RowPartition {
    let pass = match pass {
        Pass::Backward { .. } => Partitioned::Backward,
        Pass::Forward | Pass::Merge => Partitioned::Forward,
    };
    RowPartition::new(pass, &op.shape, rows)
}

/// Elements of the workspace that a call over `rows` rows takes.
fn taken(isa: Isa, op: &KronOp, pass: Pass, rows: usize) -> usize {
    let partition = partition(op, pass, rows);
    match pass {
        Pass::Forward => forward::layout(isa, op, partition).workspace_len(),
        Pass::Backward { dx } => backward::layout(isa, op, partition, dx).call.workspace_len(),
        Pass::Merge => merge::layout(isa, op, partition).workspace_len(),
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
            let parts = |pass| partition(&op, pass, rows);
            let forward = forward::layout(isa, &op, parts(Pass::Forward));
            check_pieces(forward.ranges(), forward.workspace_len(), &what);
            let backward = backward::layout(isa, &op, parts(Pass::Backward { dx }), dx);
            check_pieces(backward.call.ranges(), backward.call.workspace_len(), &what);
            check_pieces(backward.gradient.ranges(0).collect(), backward.gradient.len(), &what);
            let merge = merge::layout(isa, &op, parts(Pass::Merge));
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
fn calls_run_with_exactly_the_elements_of_their_layout() {
    let mut partitioned = [0, 0];
    for i in 0..CASES {
        let case = Case::random(i, 250);
        let parts = |pass| partition(&case.op, pass, case.rows).parts;
        partitioned[0] += usize::from(parts(Pass::Forward) > 1);
        partitioned[1] += usize::from(parts(Pass::Backward { dx: case.dx }) > 1);
        for isa in instruction_sets() {
            let cpu = Cpu { isa, team: Team::default() };
            run::<f32>(cpu, case);
            run::<f16>(cpu, case);
            run::<bf16>(cpu, case);
        }
    }
    assert!(cfg!(miri) || partitioned.into_iter().all(|cases| cases > 0), "{partitioned:?}");
}

/// Returns an op of eight times the layer, whose calls have several partitions from a few rows on.
fn larger(op: KronOp) -> KronOp {
    let s = op.shape;
    let layer = LayerDims { d_out: 8 * s.d_out(), d_in: 8 * s.d_in() };
    let inner = s.rank().map_or(Inner::Full, |rank| Inner::LowRank(4 * rank));
    let shape = KronShape::new(layer, Split { a_out: s.a_out(), a_in: s.a_in() }, s.outer(), inner);
    KronOp { shape: shape.expect("legal"), ..op }
}

/// `workspace_len` suffices for every call over fewer rows, is at most twice what one of them takes, and
/// never falls as the rows grow.
#[test]
fn a_workspace_serves_every_call_over_fewer_rows() {
    const CASES: u32 = if cfg!(miri) { 3 } else { 20_000 };
    let passes = [Pass::Forward, Pass::Backward { dx: true }, Pass::Backward { dx: false }, Pass::Merge];
    let mut falls = 0;
    for i in 0..CASES {
        let op = larger(Case::random(i, 1).op);
        let bits = philox([i, 0, 1, 0], [8, 0]);
        // Most workspaces change within some hundred rows; a few are compared at any number of them.
        let rows = bits[0] as usize % if bits[1].is_multiple_of(8) { 1 << 20 } else { 400 };
        let pass = passes[bits[2] as usize % passes.len()];
        let isa = instruction_sets().nth(i as usize % instruction_sets().count()).expect("at least one");
        let len = Cpu { isa, team: Team::default() }.workspace_len(&op, pass, rows);
        let (own, mut largest) = (taken(isa, &op, pass, rows), 0);
        for k in 0..64 {
            let fewer = philox([i, k, 2, 0], [8, 0])[0] as usize % (rows + 1);
            let shorter = Cpu { isa, team: Team::default() }.workspace_len(&op, pass, fewer);
            largest = largest.max(taken(isa, &op, pass, fewer));
            assert!(largest <= len, "{op:?}, {pass:?}: {rows} rows have {len}, {fewer} need {largest}");
            assert!(shorter <= len, "{op:?}, {pass:?}: {rows} rows have {len}, {fewer} have {shorter}");
        }
        let largest = largest.max(own);
        assert!(len <= 2 * largest, "{op:?}, {pass:?}, {rows} rows: {len}, but {largest} suffice");
        falls += u32::from(largest > own);
    }
    assert!(cfg!(miri) || falls > CASES / 100, "only {falls} problems have a shorter call that needs more");
}

/// Returns one of several adapters of one layer.
fn adapter(bits: &[u32]) -> (KronOp, Theta) {
    let layer = LayerDims { d_out: 240, d_in: 420 };
    let a_out = [1, 4, 16, 60][bits[0] as usize % 4];
    let a_in = [1, 2, 7, 20][bits[1] as usize % 4];
    let rank = 1 + bits[2] as usize % 40;
    let shape = match bits[3] % 4 {
        0 => KronShape::lora(layer, rank),
        1 => KronShape::krona(layer, Split { a_out: 16, a_in: 20 }),
        _ => KronShape::kron(layer, Split { a_out, a_in }, rank),
    };
    let op = KronOp::new(shape.expect("legal"), Scale::new(0.5).expect("finite"));
    (op, Theta::random(op.shape, 1))
}

/// A workspace for so many rows serves every table over fewer rows, and a smaller one is refused, not overrun.
#[test]
fn a_workspace_serves_every_table() {
    const CASES: u32 = if cfg!(miri) { 1 } else { 150 };
    // As many tasks as there may be, one after the other.
    let cpu = Cpu::new().on(Team::Custom(|count, task| (0..count).for_each(task)));
    let mut refused = 0;
    for i in 0..CASES {
        let random = |k: u32| philox([i, k, 3, 0], [9, 0]);
        let adapters: Vec<_> = (0..1 + random(0)[0] % 40).map(|k| adapter(&random(1 + k))).collect();
        let entries: Vec<_> =
            adapters.iter().map(|(op, theta)| PoolEntry { op: *op, theta: theta.as_slice() }).collect();
        let pool = AdapterPool::new(&entries).expect("one layer");
        let most = random(50)[0] as usize % if cfg!(miri) { 8 } else { 1_500 };
        let rows = random(51)[0] as usize % (most + 1);
        // Some tables have a few adapters with most rows.
        let table: Vec<i32> = (0..rows as u32)
            .map(|row| {
                let [a, b, ..] = random(60 + row);
                let among = if b.is_multiple_of(3) { 2 } else { adapters.len() as u32 + 1 };
                (a % among) as i32 - 1
            })
            .collect();
        let (x, dy) = (Array2::<f32>::ones((rows, 420)), Array2::<f32>::ones((rows, 240)));
        let (mut y, mut dx) = (Array2::<f32>::zeros((rows, 240)), Array2::<f32>::zeros((rows, 420)));
        let mut t = vec![0.0; pool.t_len(rows)];
        let mut grads: Vec<_> = adapters.iter().map(|(op, _)| vec![0.0; op.shape.params()]).collect();
        let passes = [Pass::Forward, Pass::Backward { dx: true }];
        let mut spaces = passes.map(|pass| vec![f32::NAN; cpu.segments_workspace_len(&pool, pass, most)]);
        for pass in passes {
            let own = cpu.segments_workspace_len(&pool, pass, rows);
            let len = cpu.segments_workspace_len(&pool, pass, most);
            assert!(own <= len, "{pass:?}: {rows} rows have {own}, {most} have {len}");
        }
        let accum = Accum::Add;
        let mut forward = |workspace: &mut [f32]| {
            let call = ForwardSegments {
                x: x.view(),
                table: &table,
                y: y.view_mut(),
                accum,
                t: &mut t,
                workspace,
                dropout: None,
            };
            cpu.forward_segments(&pool, call)
        };
        let small = spaces[0].len() / 8;
        refused += u32::from(forward(&mut spaces[0][..small]).is_err());
        forward(&mut spaces[0]).unwrap_or_else(|e| panic!("case {i}, {rows} of {most} rows: {e}"));
        let call = BackwardSegments {
            x: x.view(),
            table: &table,
            t: &t,
            dy: dy.view(),
            dx: Some((dx.view_mut(), accum)),
            grads: &mut grads.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
            workspace: &mut spaces[1],
            dropout: None,
        };
        let backward = cpu.backward_segments(&pool, call);
        backward.unwrap_or_else(|e| panic!("case {i}, {rows} of {most} rows: {e}"));
        assert!(grads.iter().flatten().chain(&y).chain(&dx).all(|v| v.is_finite()), "case {i}");
    }
    assert!(cfg!(miri) || refused > CASES / 3, "only {refused} small workspaces were refused");
}

/// Runs the three passes in exact and in large workspaces and compares all bits.
fn run<E: Element>(cpu: Cpu, case: Case) {
    let (mut want, mut got) = (Buffers::<E>::new(&case), Buffers::<E>::new(&case));
    let backward = Pass::Backward { dx: case.dx };
    for (pass, rows) in [(Pass::Forward, case.rows), (backward, case.rows), (Pass::Merge, case.merge_rows())]
    {
        let len = taken(cpu.isa, &case.op, pass, rows);
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
