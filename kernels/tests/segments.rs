//! Calls over segments on the emulator: against the oracle and single calls, and what no bit may depend on.

mod common;

use std::cell::RefCell;

use common::segments::{Batch, BatchCase, batches, check, scaled};
use common::{Float, Matrix, SCALE};
use half::{bf16, f16};
use kron_core::{Accum, Dtype, KronShape, LayerDims, Pass, Result, Split};
use kron_kernels::params::KronParams;
use kron_kernels::{
    Async, BackwardSegments, Cuda, DevicePool, DeviceSlice, DeviceSliceMut, Emulated, ForwardSegments,
    LaunchPlan, Launcher, Problem, Schedule, Step, StreamHandle, segments_workspace_len,
};

fn all(case: &BatchCase, on: &Emulated) {
    check::<f32>(case.clone(), on);
    check::<f16>(case.clone(), on);
    check::<bf16>(case.clone(), on);
}

#[test]
fn fifo_agrees_with_the_oracle_and_with_single_calls() {
    batches().iter().for_each(|case| all(case, &Emulated::new()));
}

#[test]
fn fifo_with_whole_tiles() {
    batches().iter().for_each(|case| all(case, &Emulated { blocks: 1, ..Emulated::new() }));
}

#[test]
fn bits_do_not_depend_on_the_schedule_or_the_tiles() {
    for case in batches() {
        let bits = |on: &Emulated| Batch::<bf16>::new(case.clone()).run(on).expect("the suite runs").bits();
        let first = bits(&Emulated::new());
        for (schedule, copies, seed, blocks) in [
            (Schedule::Reverse, Async::Eager, 0, 264),
            (Schedule::Random, Async::Coin, 5, 20),
            (Schedule::Pct, Async::Lazy, 6, 1),
        ] {
            let on = Emulated { blocks, ..Emulated::with(schedule, copies, seed) };
            assert!(first == bits(&on), "{schedule:?} {blocks} {case:?}");
        }
    }
}

/// An adapter's rows have the bits of a call over them alone.
#[test]
fn bits_do_not_depend_on_other_rows() {
    fn test<E: Float>(case: BatchCase) {
        let batch = Batch::<E>::new(case);
        let done = batch.clone().run(&Emulated::new()).expect("the suite runs");
        for slot in 0..batch.of.slots as i32 {
            let (rows, stride) = (batch.rows_of(slot), batch.stride());
            let alone =
                batch.alone(slot).run(&Emulated { blocks: 8, ..Emulated::new() }).expect("the suite runs");
            let of =
                |m: &Matrix<E>, rows: &[usize]| m.to_f64().select(ndarray::Axis(0), rows).mapv(f64::to_bits);
            let own: Vec<usize> = (0..rows.len()).collect();
            assert!(of(&done.y, &rows) == of(&alone.y, &own), "Y of slot {slot}, {:?}", batch.of);
            assert!(of(&done.dx, &rows) == of(&alone.dx, &own), "dX of slot {slot}, {:?}", batch.of);
            let grad = |b: &Batch<E>| {
                b.grads[slot as usize * stride..][..stride].iter().map(|g| g.to_bits()).collect::<Vec<_>>()
            };
            assert!(grad(&done) == grad(&alone), "the gradient of slot {slot}, {:?}", batch.of);
        }
    }
    // A mask depends on the rows' numbers.
    for case in batches().into_iter().filter(|case| case.case.dropout == 0) {
        test::<f32>(case.clone());
        test::<bf16>(case);
    }
}

/// Each slot's own scale gives the bits of a pool whose op has it.
#[test]
fn every_slot_may_have_a_scale() {
    let case = batches().remove(1);
    let mut batch = Batch::<f32>::new(case.clone());
    let factors: Vec<f32> = (0..case.slots).map(|slot| 0.5 + slot as f32).collect();
    batch.scales = Some(factors.iter().map(|factor| SCALE * factor).collect());
    let (on, op) = (Emulated::new(), case.case.op());
    let done = batch.clone().run_with(&op, &Cuda::with(&on)).expect("the suite runs");
    for (slot, &factor) in factors.iter().enumerate() {
        let (rows, stride) = (batch.rows_of(slot as i32), batch.stride());
        let uniform = Batch { scales: None, ..batch.clone() };
        let uniform =
            uniform.run_with(&scaled(&case.case, factor), &Cuda::with(&on)).expect("the suite runs");
        let of = |m: &Matrix<f32>| m.to_f64().select(ndarray::Axis(0), &rows);
        assert!(of(&done.y) == of(&uniform.y) && of(&done.dx) == of(&uniform.dx), "slot {slot}");
        let grad = |b: &Batch<f32>| b.grads[slot * stride..][..stride - 3].to_vec();
        assert!(grad(&done) == grad(&uniform), "slot {slot}");
    }
}

/// In a pool of a higher rank an adapter with zeros has the values of its own rank, and the zeros keep theirs.
#[test]
fn ranks_may_differ_within_a_pool() {
    let narrow = batches().remove(1);
    let (low, rank) = (narrow.case.sizes.rank, narrow.case.sizes.rank + 5);
    let mut wide = narrow.clone();
    wide.case.sizes.rank = rank;
    let (mut own, mut padded) = (Batch::<f32>::new(narrow.clone()), Batch::<f32>::new(wide.clone()));
    let (a, b, c) = {
        let shape = narrow.case.shape();
        (shape.a_len(), shape.b_out(), shape.c_in())
    };
    // Where the elements of [A | B | C] of the lower rank lie in those of the higher one.
    let at = |e: usize| match e {
        e if e < a => e,
        e if e < a + b * low => a + (e - a) / low * rank + (e - a) % low,
        e => a + b * rank + (e - a - b * low),
    };
    let of = a + (b + c) * low;
    let (stride, wide_stride) = (own.stride(), padded.stride());
    let all = |slot: usize| slot * wide_stride..slot * wide_stride + a + (b + c) * rank;
    for slot in 0..narrow.slots {
        padded.thetas[all(slot)].fill(0.0);
        padded.grads[all(slot)].fill(0.0);
        own.grads[slot * stride..][..of].fill(0.0);
        (0..of).for_each(|e| padded.thetas[slot * wide_stride + at(e)] = own.thetas[slot * stride + e]);
    }
    let on = Emulated::new();
    let (own, padded) = (own.run(&on).expect("the suite runs"), padded.run(&on).expect("the suite runs"));
    assert!(own.y.to_f64() == padded.y.to_f64() && own.dx.to_f64() == padded.dx.to_f64());
    for slot in 0..narrow.slots {
        let mut want = vec![0.0; all(slot).len()];
        (0..of).for_each(|e| want[at(e)] = own.grads[slot * stride + e]);
        let (got_a, got) = padded.grads[all(slot)].split_at(a);
        assert!(got == &want[a..], "dB and dC of slot {slot}");
        // dA sums over the ranks in lanes, of which there are more.
        let size = want[..a].iter().fold(0.0f32, |size, v| size.max(v.abs()));
        let error = std::iter::zip(got_a, &want).fold(0.0f32, |error, (x, y)| error.max((x - y).abs()));
        assert!(error <= 1e-5 * size, "dA of slot {slot}: {error} of {size}");
    }
}

/// Keeps the launches as a graph does.
#[derive(Default)]
struct Captured(RefCell<Vec<(Step, KronParams)>>);

impl Launcher for Captured {
    unsafe fn launch(&self, step: &Step, params: &KronParams, _: StreamHandle) -> Result<()> {
        self.0.borrow_mut().push((*step, *params));
        Ok(())
    }
}

/// Launches that were captured with one table serve another in the same memory.
#[test]
fn a_replay_reads_the_table_anew() {
    let case = batches().remove(0);
    let mut tables = vec![case.table.clone()];
    tables.push(case.table.iter().rev().copied().collect());
    tables.push(vec![2; case.table.len()]);
    tables.push(vec![-1; case.table.len()]);
    let of = |table: &Vec<i32>| BatchCase { table: table.clone(), ..case.clone() };
    let (op, stride) = (case.case.op(), Batch::<bf16>::new(case.clone()).stride());
    let mut batch = Batch::<bf16>::new(of(&tables[0]));
    let mut table = tables[0].clone();
    let memory = (table.as_mut_ptr(), table.len());
    let captured = Captured::default();
    let cuda = Cuda::with(&captured);
    let pool = DevicePool::new(op, DeviceSlice::host(&batch.thetas), case.slots, stride).expect("legal");
    let len = |pass| cuda.segments_workspace_len(&pool, pass, table.len());
    let mut workspace = vec![f32::NAN; len(Pass::Forward).max(len(Pass::Backward { dx: true }))];
    // SAFETY: the table outlives the launches, and nothing else uses it while they run.
    let on_device = || unsafe { DeviceSlice::from_raw(memory.0 as u64, memory.1) };
    let forward = ForwardSegments {
        x: batch.x.rows(),
        table: on_device(),
        y: batch.y.rows_mut(),
        accum: case.case.accum(),
        t: DeviceSliceMut::host(&mut batch.t),
        workspace: DeviceSliceMut::host(&mut workspace),
        status: DeviceSliceMut::host(&mut batch.status),
        dropout: None,
    };
    cuda.forward_segments(&pool, forward).expect("captured");
    let backward = BackwardSegments {
        x: batch.x.rows(),
        table: on_device(),
        t: DeviceSlice::host(&batch.t),
        dy: batch.dy.rows(),
        dx: Some((batch.dx.rows_mut(), case.case.accum())),
        grads: DeviceSliceMut::host(&mut batch.grads),
        workspace: DeviceSliceMut::host(&mut workspace),
        status: DeviceSliceMut::host(&mut batch.status),
        dropout: None,
    };
    cuda.backward_segments(&pool, backward).expect("captured");
    let launches = captured.0.take();
    assert_eq!(launches.len(), 7);
    for next in &tables {
        // SAFETY: as above; the lengths are equal.
        unsafe { std::slice::from_raw_parts_mut(memory.0, memory.1) }.copy_from_slice(next);
        let fresh = Batch::<bf16>::new(of(next));
        // In place, because the launches know the addresses.
        batch.y.copy_from(&fresh.y);
        batch.dx.copy_from(&fresh.dx);
        batch.t.copy_from_slice(&fresh.t);
        batch.grads.copy_from_slice(&fresh.grads);
        let on = Emulated::new();
        for (step, params) in &launches {
            // SAFETY: the batch's memory and the workspace outlive the launch.
            unsafe { on.launch(step, params, StreamHandle::DEFAULT) }.expect("runs");
        }
        assert!(batch.bits() == fresh.run(&Emulated::new()).expect("runs").bits(), "{next:?}");
    }
}

/// Sizes of the buffers of a call over two slots and four rows, right until a test makes one wrong.
struct Lens {
    thetas: usize,
    stride: usize,
    slots: usize,
    scales: usize,
    table: usize,
    x_stride: usize,
    y: usize,
    dx: usize,
    t: usize,
    grads: usize,
    status: usize,
    workspace: usize,
}

impl Lens {
    /// The messages of forward and backward; the sizes of a pool are those of both.
    fn messages(&self) -> [Option<String>; 2] {
        let op = batches().remove(13).case.op(); // 96 × 80, θ of 8 + 192 + 320
        let (floats, table) = (vec![0.5f32; 4000], vec![0i32; self.table]);
        let [mut y, mut dx, mut t, mut grads, mut workspace] = [(); 5].map(|()| vec![0.5f32; 4000]);
        let mut status = vec![0; self.status];
        let pool = DevicePool::new(op, DeviceSlice::host(&floats[..self.thetas]), self.slots, self.stride)
            .and_then(|pool| pool.with_scales(DeviceSlice::host(&floats[..self.scales])));
        let pool = match pool {
            Ok(pool) => pool,
            Err(e) => return [Some(e.to_string()), Some(e.to_string())],
        };
        let (on, written) = (Captured::default(), |v: &[f32]| v.iter().any(|&v| v != 0.5));
        let cuda = Cuda::with(&on);
        let rows = |stride| kron_kernels::Rows {
            data: DeviceSlice::host(&floats[..3 * stride + 80]),
            rows: 4,
            stride,
        };
        let forward = ForwardSegments {
            x: rows(self.x_stride),
            table: DeviceSlice::host(&table),
            y: kron_kernels::RowsMut {
                data: DeviceSliceMut::host(&mut y[..96 * self.y]),
                rows: self.y,
                stride: 96,
            },
            accum: Accum::Add,
            t: DeviceSliceMut::host(&mut t[..self.t]),
            workspace: DeviceSliceMut::host(&mut workspace[..self.workspace]),
            status: DeviceSliceMut::host(&mut status),
            dropout: None,
        };
        let forward = cuda.forward_segments(&pool, forward).err().map(|e| e.to_string());
        let dx_rows = kron_kernels::RowsMut {
            data: DeviceSliceMut::host(&mut dx[..80 * self.dx]),
            rows: self.dx,
            stride: 80,
        };
        let backward = BackwardSegments {
            x: rows(self.x_stride),
            table: DeviceSlice::host(&table),
            t: DeviceSlice::host(&t[..self.t]),
            dy: kron_kernels::Rows {
                data: DeviceSlice::host(&floats[..96 * self.y]),
                rows: self.y,
                stride: 96,
            },
            dx: Some((dx_rows, Accum::Add)),
            grads: DeviceSliceMut::host(&mut grads[..self.grads]),
            workspace: DeviceSliceMut::host(&mut workspace[..self.workspace]),
            status: DeviceSliceMut::host(&mut status),
            dropout: None,
        };
        let backward = cuda.backward_segments(&pool, backward).err().map(|e| e.to_string());
        let launched = on.0.borrow().len();
        assert_eq!(
            launched,
            [&forward, &backward]
                .iter()
                .zip([3, 4])
                .map(|(e, n)| if e.is_none() { n } else { 0 })
                .sum::<usize>()
        );
        assert!(!written(&y) && !written(&dx) && !written(&grads), "a call without a device wrote");
        [forward, backward]
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused_with_the_numbers() {
    let right = || Lens {
        thetas: 523 + 520,
        stride: 523,
        slots: 2,
        scales: 2,
        table: 4,
        x_stride: 80,
        y: 4,
        dx: 4,
        t: 64,
        grads: 523 + 520,
        status: 2,
        workspace: 1000,
    };
    let with = |change: &dyn Fn(&mut Lens)| {
        let mut lens = right();
        change(&mut lens);
        lens.messages()
    };
    assert_eq!(right().messages(), [None, None]);
    type Change<'a> = &'a dyn Fn(&mut Lens);
    let both: [(Change, &str); 9] = [
        (&|l| l.slots = 0, "the pool has 0 slots, but it has 1 to 1073741824"),
        (
            &|l| l.stride = 519,
            "theta has 1043 elements in slots of 519, but a slot has at least the 520 elements",
        ),
        (&|l| l.thetas -= 1, "theta has 1042 elements in slots of 523, but 2 slots need more"),
        (&|l| l.stride = usize::MAX / 2, "theta has"),
        (&|l| l.scales = 1, "scales has 1 elements, but this call needs 2"),
        (&|l| l.table = 3, "table has 3 rows, but x has 4"),
        (&|l| l.x_stride = 79, "x has a stride of 79, but its rows have 80 elements"),
        (&|l| l.t -= 1, "t has 63 elements, but this call needs 64"),
        (&|l| l.status = 1, "status has 1 elements, but this call needs 2"),
    ];
    for (change, want) in both {
        for message in with(change) {
            let message = message.expect("an error");
            assert!(message.contains(want), "{message}");
        }
    }
    let [forward, backward] = with(&|l| l.y = 3).map(|message| message.expect("an error"));
    assert!(forward.contains("y has 3 rows") && backward.contains("dy has 3 rows"), "{forward}, {backward}");
    for (change, want) in [
        (&(|l: &mut Lens| l.grads -= 1) as Change, "grads has 1042 elements in slots of 523"),
        (&|l| l.dx = 3, "dx has 3 rows, but x has 4"),
        (&|l| l.workspace = 300, "workspace has 300 elements"),
    ] {
        let message = with(change)[1].clone().expect("an error");
        assert!(message.contains(want), "{message}");
    }
}

/// The launches follow from the numbers of rows and slots, and no larger call needs less scratch.
#[test]
fn plans_are_pure_and_inside_the_limits() {
    let layer = LayerDims { d_out: 4096, d_in: 4096 };
    let kron = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8).expect("legal");
    for shape in [kron, KronShape::lora(layer, 128).expect("legal")] {
        for pass in [Pass::Forward, Pass::Backward { dx: true }, Pass::Backward { dx: false }] {
            let mut last = 0;
            for rows in [0, 1, 2, 16, 64, 132, 133, 1000, 4096, 16384, 100_000] {
                let len = segments_workspace_len(shape, pass, rows).expect("legal");
                assert!(len >= last, "{shape} {pass:?} {rows}");
                last = len;
                for slots in [1, 2, 16, 1024, 1 << 30] {
                    let problem =
                        Problem { shape, dtype: Dtype::Bf16, pass, rows, accumulate: true, aligned: true };
                    let plan = LaunchPlan::segments(&problem, slots).expect("legal");
                    assert_eq!(plan, LaunchPlan::segments(&problem, slots).expect("legal"));
                    assert_eq!(plan.steps.is_empty(), rows == 0);
                    assert!(plan.workspace <= len && plan.segments.count <= rows, "{plan}");
                    assert_eq!(plan.floor_bytes == 0, rows == 0);
                }
            }
        }
    }
    let problem = Problem {
        shape: kron,
        dtype: Dtype::F32,
        pass: Pass::Merge,
        rows: 1,
        accumulate: true,
        aligned: true,
    };
    let merge = LaunchPlan::segments(&problem, 1).expect_err("a merge").to_string();
    assert!(merge.contains("a merge is of one adapter"), "{merge}");
    let many = LaunchPlan::segments(&Problem { rows: 1 << 27, pass: Pass::Forward, ..problem }, 1);
    let many = many.expect_err("too many").to_string();
    assert!(
        many.contains("134217728 rows of 16 blocks are more than the limit of 1073741824 blocks"),
        "{many}"
    );
}
