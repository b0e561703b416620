//! Batches of rows of many adapters of one shape, and the oracle's answer to each adapter's part.

use kron_core::{Accum, DropoutKey, KronOp, Pass, Result, Scale, Theta};
use kron_kernels::{
    self as kk, BackwardSegments, Cuda, DevicePool, DeviceSlice, DeviceSliceMut, ForwardSegments,
};
use ndarray::{Array2, Axis};

use super::memory::{Host, Memory};
use super::{Case, Data, Float, Matrix, SCALE, Sizes, close, random};

impl<E: Float> Matrix<E> {
    /// Takes the elements of a matrix of the same sizes, in place.
    pub fn copy_from(&mut self, other: &Self) {
        let len = self.len();
        self.memory[self.start..self.start + len]
            .copy_from_slice(&other.memory[other.start..other.start + len]);
    }
}

/// Elements between the gradients and θ of neighbouring slots.
const GAP: usize = 3;

/// One batch of the suite; `why` is its purpose.
#[derive(Clone, Debug)]
pub struct BatchCase {
    /// Shape, number of rows, padding, dropout and treatment of old contents.
    pub case: Case,
    pub slots: usize,
    pub table: Vec<i32>,
}

fn batch(
    why: &'static str,
    sizes: [usize; 5],
    table: &[i32],
    slots: usize,
    [pad, dropout, add]: [u32; 3],
) -> BatchCase {
    let [a_out, a_in, b_out, c_in, rank] = sizes;
    let sizes = Sizes { a_out, a_in, b_out, c_in, rank };
    let case = Case { why, sizes, rows: table.len(), pad: pad as usize, dropout, accumulate: add > 0 };
    BatchCase { case, slots, table: table.to_vec() }
}

/// The suite; sizes are those of [`Sizes`], then come the table, the slots, and padding, dropout and accumulation.
pub fn batches() -> Vec<BatchCase> {
    // Slot 4 has no row; 1 to 12 rows each of the others, some rows without one, some with numbers of no slot.
    let pattern = [0, 3, -1, 5, 2, 0, 3, 1, 3, -1, 5];
    let unsorted: Vec<i32> = (0..61).map(|i: usize| pattern[i * i % 11]).collect();
    let mut hostile = unsorted[..41].to_vec();
    (hostile[7], hostile[20], hostile[33], hostile[40]) = (6, i32::MAX, i32::MIN, -2);
    let tall: Vec<i32> = (0..300).map(|i| if i % 7 == 0 { 1 } else { 0 }).collect();
    vec![
        batch("odd everything, hostile", [3, 5, 7, 11, 6], &hostile, 6, [1, 0, 1]),
        batch("the paper's shape in small", [16, 2, 64, 128, 8], &unsorted[..29], 6, [0, 0, 1]),
        batch(
            "several groups of ranks, dropout, replaced",
            [2, 3, 270, 67, 33],
            &unsorted[..19],
            6,
            [3, 20000, 0],
        ),
        batch("several slices for each warp, LoRA", [0, 1, 2085, 2311, 3], &[1, -1, 1, 0], 2, [0, 0, 1]),
        batch("more blocks than a block has rows", [2, 40, 9, 7, 4], &unsorted[..37], 6, [0, 0, 0]),
        batch("more rows of A than a block has rows", [40, 2, 9, 300, 12], &unsorted[..37], 6, [1, 9000, 1]),
        batch("a full inner factor", [3, 2, 21, 26, 0], &unsorted[..23], 6, [0, 0, 1]),
        batch("a full inner factor, two slices", [2, 1, 270, 9, 0], &[0, 0, -1, 1], 2, [0, 700, 0]),
        batch("LoRA, replaced", [0, 1, 37, 53, 8], &unsorted, 6, [3, 0, 0]),
        batch("one row", [2, 3, 17, 19, 1], &[3], 4, [0, 0, 1]),
        batch("one row without an adapter", [2, 3, 17, 19, 1], &[-1], 4, [0, 0, 1]),
        batch("no rows", [2, 4, 24, 40, 8], &[], 2, [0, 0, 1]),
        batch("all rows of one adapter", [4, 2, 24, 40, 8], &[1; 70], 3, [8, 0, 1]),
        batch("one slot", [4, 2, 24, 40, 8], &[0, -1, 0, 0, 0], 1, [0, 0, 1]),
        batch("more slots than rows", [4, 2, 24, 40, 8], &[48, 2, -1, 2, 17, 0], 50, [0, 0, 0]),
        batch("more rows than one step of the table", [1, 2, 5, 6, 2], &tall.repeat(8), 2, [0, 0, 1]),
    ]
}

/// A batch and its memory.
#[derive(Clone, Debug)]
pub struct Batch<E> {
    pub of: BatchCase,
    /// θ of each slot, and NaN between them.
    pub thetas: Vec<f32>,
    pub scales: Option<Vec<f32>>,
    pub x: Matrix<E>,
    pub y: Matrix<E>,
    pub dy: Matrix<E>,
    pub dx: Matrix<E>,
    pub grads: Vec<f32>,
    pub t: Vec<f32>,
    pub status: Vec<u32>,
}

impl<E: Float> Batch<E> {
    pub fn new(of: BatchCase) -> Self {
        let (case, shape, n) = (of.case, of.case.shape(), of.case.rows);
        let matrix = |cols, stream| Matrix::new(n, cols, case.pad, &random(n * cols, stream));
        let (mut thetas, mut grads) = (Vec::new(), Vec::new());
        for slot in 0..of.slots {
            thetas.extend_from_slice(Theta::random(shape, 11 + slot as u64).as_slice());
            grads.extend(random(shape.params(), 100 + slot as u32));
            thetas.extend([f32::NAN; GAP]);
            grads.extend([f32::NAN; GAP]);
        }
        Self {
            x: matrix(shape.d_in(), 1),
            y: matrix(shape.d_out(), 2),
            dy: matrix(shape.d_out(), 3),
            dx: matrix(shape.d_in(), 4),
            t: vec![f32::NAN; n * shape.t_row()],
            status: vec![7; 2],
            scales: None,
            of,
            thetas,
            grads,
        }
    }

    pub fn stride(&self) -> usize {
        self.of.case.shape().params() + GAP
    }

    /// Numbers of the rows of a slot, in order.
    pub fn rows_of(&self, slot: i32) -> Vec<usize> {
        (0..self.of.case.rows).filter(|&row| self.of.table[row] == slot).collect()
    }

    /// The rows of a slot as a batch of their own.
    pub fn alone(&self, slot: i32) -> Self {
        let rows = self.rows_of(slot);
        let case = Case { rows: rows.len(), ..self.of.case };
        let of = BatchCase { case, table: vec![slot; rows.len()], ..self.of.clone() };
        let matrix = |m: &Matrix<E>| {
            let values = m.to_f64().select(Axis(0), &rows).mapv(|v| v as f32);
            Matrix::new(rows.len(), m.cols, case.pad, &values.into_raw_vec_and_offset().0)
        };
        let t = vec![f32::NAN; rows.len() * case.shape().t_row()];
        let [x, y, dy, dx] = [&self.x, &self.y, &self.dy, &self.dx].map(matrix);
        Self { of, x, y, dy, dx, t, ..self.clone() }
    }

    /// Runs forward and backward.
    pub fn run(self, on: &impl kk::Launcher) -> Result<Self> {
        let op = self.of.case.op();
        self.run_with(&op, &Cuda::with(on))
    }

    pub fn run_with(self, op: &KronOp, cuda: &Cuda<impl kk::Launcher>) -> Result<Self> {
        self.run_in(op, cuda, &Host)
    }

    /// Runs both passes with operands in a launcher's memory.
    pub fn run_in(
        mut self,
        op: &KronOp,
        cuda: &Cuda<impl kk::Launcher>,
        memory: &impl Memory,
    ) -> Result<Self> {
        let (case, stride) = (self.of.case, self.stride());
        let (accum, dropout) = (case.accum(), case.key());
        let mut pool = DevicePool::new(*op, memory.read(&self.thetas), self.of.slots, stride)?;
        if let Some(scales) = &self.scales {
            pool = pool.with_scales(memory.read(scales))?;
        }
        let scratch = |pass| vec![f32::NAN; cuda.segments_workspace_len(&pool, pass, case.rows)];
        let mut workspace = scratch(Pass::Forward);
        let call = ForwardSegments {
            x: self.x.rows_in(memory),
            table: memory.read(&self.of.table),
            y: self.y.rows_mut_in(memory),
            accum,
            t: memory.write(&mut self.t),
            workspace: memory.write(&mut workspace),
            status: memory.write(&mut self.status),
            dropout,
        };
        cuda.forward_segments(&pool, call)?;
        memory.settle()?;
        let mut with_dx = self.grads.clone();
        for (dx, grads) in [(true, &mut with_dx), (false, &mut self.grads)] {
            let mut workspace = scratch(Pass::Backward { dx });
            let call = BackwardSegments {
                x: self.x.rows_in(memory),
                table: memory.read(&self.of.table),
                t: memory.read(&self.t),
                dy: self.dy.rows_in(memory),
                dx: dx.then_some((self.dx.rows_mut_in(memory), accum)),
                grads: memory.write(grads),
                workspace: memory.write(&mut workspace),
                status: memory.write(&mut self.status),
                dropout,
            };
            cuda.backward_segments(&pool, call)?;
            memory.settle()?;
        }
        let bits = |grads: &[f32]| grads.iter().map(|g| g.to_bits()).collect::<Vec<_>>();
        assert!(bits(&with_dx) == bits(&self.grads), "{}: gradients depend on dX", case.why);
        Ok(self)
    }

    /// Runs forward with a launcher that ends with the sort, and returns the bits of the scratch. Some elements lie
    /// before it, for a sort with a fault.
    pub fn sort(mut self, on: &impl kk::Launcher) -> Result<Vec<u32>> {
        const BEFORE: usize = 64;
        let (case, cuda) = (self.of.case, Cuda::with(on));
        let theta = DeviceSlice::host(&self.thetas);
        let pool = DevicePool::new(case.op(), theta, self.of.slots, self.stride())?;
        let len = cuda.segments_workspace_len(&pool, Pass::Forward, case.rows);
        let mut workspace = vec![f32::NAN; BEFORE + len];
        let call = ForwardSegments {
            x: self.x.rows(),
            table: DeviceSlice::host(&self.of.table),
            y: self.y.rows_mut(),
            accum: case.accum(),
            t: DeviceSliceMut::host(&mut self.t),
            workspace: DeviceSliceMut::host(&mut workspace[BEFORE..]),
            status: DeviceSliceMut::host(&mut self.status),
            dropout: None,
        };
        cuda.forward_segments(&pool, call)?;
        Ok(workspace.iter().map(|v| v.to_bits()).chain(self.status).collect())
    }

    /// Every output bit.
    pub fn bits(&self) -> Vec<u32> {
        let floats = self.t.iter().chain(&self.grads).map(|v| v.to_bits());
        [self.y.bits(), self.dx.bits(), floats.collect(), self.status.clone()].concat()
    }
}

/// The rows of one adapter as a single problem over all rows, in which the other rows have no dY.
fn problem<E: Float>(batch: &Batch<E>, slot: i32) -> Data<E> {
    let (case, stride) = (batch.of.case, batch.stride());
    let at = slot as usize * stride..slot as usize * stride + case.shape().params();
    let rows = batch.rows_of(slot);
    let mut dy = batch.dy.to_f64();
    (0..case.rows).filter(|row| !rows.contains(row)).for_each(|row| dy.row_mut(row).fill(0.0));
    let dy: Vec<f32> = dy.iter().map(|&v| v as f32).collect();
    Data {
        theta: Theta::from_vec(case.shape(), batch.thetas[at.clone()].to_vec()).expect("its length"),
        x: batch.x.clone(),
        y: batch.y.clone(),
        dy: Matrix::new(case.rows, case.shape().d_out(), case.pad, &dy),
        dx: batch.dx.clone(),
        grad: batch.grads[at].to_vec(),
        ..Data::new(case)
    }
}

/// Runs a batch and compares every adapter's part of all outputs with the oracle's and with a single call's; rows
/// without an adapter, and gradients without a row, keep their bits.
pub fn check<E: Float>(of: BatchCase, on: &impl kk::Launcher) {
    check_run::<E>(of, |batch| batch.run(on), on);
}

/// Compares the outputs of a run with the oracle, and with single calls by `on`.
pub fn check_run<E: Float>(
    of: BatchCase,
    run: impl Fn(Batch<E>) -> Result<Batch<E>>,
    on: &impl kk::Launcher,
) {
    let (case, shape) = (of.case, of.case.shape());
    let (slots, bad) =
        (of.slots as i32, of.table.iter().position(|&slot| slot < -1 || slot >= of.slots as i32));
    let batch = Batch::<E>::new(of);
    let done = run(batch.clone()).unwrap_or_else(|e| panic!("{case:?} {}: {e}", E::DTYPE.name()));
    done.bits(); // asserts that nothing was written between rows
    let count = batch.of.table.iter().filter(|&&slot| slot < -1 || slot >= slots).count() as u32;
    let status = if case.rows > 0 { [count, bad.map_or(u32::MAX, |row| row as u32)] } else { [7, 7] };
    assert_eq!(done.status, status, "{case:?}");
    let others: Vec<usize> =
        (0..case.rows).filter(|&row| !(0..slots).contains(&batch.of.table[row])).collect();
    let same = |got: &Matrix<E>, old: &Matrix<E>| {
        let of = |m: &Matrix<E>| m.to_f64().select(Axis(0), &others).mapv(f64::to_bits);
        assert!(of(got) == of(old), "a row without an adapter was written: {case:?}");
    };
    same(&done.y, &batch.y);
    same(&done.dx, &batch.dx);
    let t_row = shape.t_row();
    assert!(others.iter().all(|row| done.t[row * t_row..][..t_row].iter().all(|t| t.is_nan())), "{case:?}");
    for slot in 0..slots {
        let (rows, at) = (batch.rows_of(slot), slot as usize * batch.stride());
        let grad = &done.grads[at..at + shape.params()];
        if rows.is_empty() {
            assert_eq!(grad, &batch.grads[at..at + shape.params()], "{case:?}");
            continue;
        }
        let data = problem(&batch, slot);
        let (oracle, plain) = (data.oracle(), data.plain());
        let single = data.run(on).unwrap_or_else(|e| panic!("{case:?}: {e}")).answer();
        let name = |what: &str| format!("{what} of slot {slot}, {} {case:?}", E::DTYPE.name());
        let rows_of = |m: &Array2<f64>| m.select(Axis(0), &rows);
        let blocks: Vec<usize> =
            rows.iter().flat_map(|row| (0..shape.a_in()).map(move |j| row * shape.a_in() + j)).collect();
        let blocks_of = |m: &Array2<f64>| m.select(Axis(0), &blocks);
        let t = Array2::from_shape_fn((case.rows * shape.a_in(), shape.width()), |(m, q)| {
            done.t[m * shape.width() + q].into()
        });
        let all = |what,
                   got: &dyn Fn(&Array2<f64>) -> Array2<f64>,
                   ours: &Array2<f64>,
                   [plain, single, oracle]: [&Array2<f64>; 3],
                   factor| {
            let [plain, oracle, single] = [plain, oracle, single].map(got);
            close(&name(what), &got(ours), &plain, &oracle, factor);
            // Both are within their bounds, so they differ by the sum at most.
            near(&name(what), &got(ours), &single, &plain, &oracle, 2.0 * factor);
        };
        all("t", &blocks_of, &t, [&plain.t, &single.t, &oracle.t], 2.0);
        all("y", &rows_of, &done.y.to_f64(), [&plain.y, &single.y, &oracle.y], 2.0);
        all("dx", &rows_of, &done.dx.to_f64(), [&plain.dx, &single.dx, &oracle.dx], 3.0);
        let grad = Array2::from_shape_fn((1, grad.len()), |(_, i)| f64::from(grad[i]));
        let mut begin = 0;
        for (what, len) in [("dA", shape.a_len()), ("dB", shape.b_len()), ("dC", shape.c_len())] {
            let part = |m: &Array2<f64>| m.slice(ndarray::s![.., begin..begin + len]).to_owned();
            if len > 0 {
                all(what, &part, &grad, [&plain.grad, &single.grad, &oracle.grad], 3.0);
            }
            begin += len;
        }
    }
}

/// Fails if two results differ by more than `factor` times the plain computation's error.
fn near(
    what: &str,
    got: &Array2<f64>,
    single: &Array2<f64>,
    plain: &Array2<f64>,
    oracle: &Array2<f64>,
    factor: f64,
) {
    let worst =
        |a: &Array2<f64>, b: &Array2<f64>| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let size = oracle.iter().fold(0.0f64, |s, v| s.max(v.abs()));
    let bound = factor * worst(plain, oracle).max(4.0 * size / (1u64 << 24) as f64);
    let error = worst(got, single);
    assert!(error <= bound, "{what}: {error:.3e} from a single call, but the bound is {bound:.3e}");
}

/// The op of a batch with another scale.
pub fn scaled(case: &Case, scale: f32) -> KronOp {
    KronOp { scale: Scale::new(SCALE * scale).expect("finite"), ..case.op() }
}
