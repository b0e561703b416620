//! Rows of many adapters in one call, against one call per adapter and against the oracle.

use half::{bf16, f16};
use kron_core::{
    Accum, AdapterPool, BackwardSegments, Cpu, Dropout, DropoutKey, Element, ForwardSegments, KronOp,
    KronShape, LayerDims, Pass, PoolEntry, Scale, Split, Team, Theta,
};
use kron_tests::batch::{Batch, Outputs};
use kron_tests::call::{self, Dx};
use kron_tests::compare::{Measures, Results};
use kron_tests::inputs::Old;
use kron_tests::{backends, oracle, same_dtype};
use ndarray::{Array2, Axis};
use rayon::ThreadPoolBuilder;

const LAYER: LayerDims = LayerDims { d_out: 208, d_in: 94 };

/// Adapters of one layer: ranks, splits and kinds that differ, and two of one shape.
fn ops() -> Vec<KronOp> {
    let kron = |a_out, a_in, rank| KronShape::kron(LAYER, Split { a_out, a_in }, rank).expect("legal");
    let lora = |rank| KronShape::lora(LAYER, rank).expect("legal");
    let krona = KronShape::krona(LAYER, Split { a_out: 16, a_in: 2 }).expect("legal");
    let shapes = [kron(16, 2, 8), kron(16, 2, 8), kron(13, 1, 3), lora(5), krona, kron(13, 2, 33)];
    let op = |(i, &shape)| KronOp::new(shape, Scale::new(0.5 + i as f32).expect("finite"));
    shapes.iter().enumerate().map(op).collect()
}

/// Tables over the six adapters of [`ops`], each with a name.
fn tables() -> Vec<(&'static str, Vec<i32>)> {
    // Adapter 4 has no row; 1 to 12 rows each of the others, some rows without one.
    let unsorted: Vec<i32> =
        (0..61).map(|i: i32| [0, 3, -1, 5, 2, 0, 3, 1, 3, -1, 5][(i * i % 11) as usize]).collect();
    let mut sorted = unsorted.clone();
    sorted.sort_unstable();
    let krona = unsorted.iter().map(|&i| if i == 2 { 4 } else { i }).collect();
    let full_only = vec![-1, 4, 4, -1, 4];
    // Adapter 0 has two partitions in forward and at most 1/16 of the rows, 1 and 5 have more of both.
    let tall = (0..7_200).map(|i| match i % 48 {
        0..3 => 0,
        3 => -1,
        4..24 => 1,
        24..30 => 3,
        30..32 => 2,
        _ => 5,
    });
    vec![
        ("unsorted", unsorted),
        ("sorted", sorted),
        ("with a full inner factor", krona),
        ("a full inner factor alone", full_only),
        ("no row", vec![]),
        ("one row", vec![3]),
        ("one row without an adapter", vec![-1]),
        ("all of one adapter", vec![1; 70]),
        ("one row each, in reverse", vec![5, 4, 3, 2, 1, 0]),
        ("tall", tall.collect()),
    ]
}

#[test]
fn f32_has_the_bits_of_single_calls() {
    has_the_bits_of_single_calls::<f32>();
}

#[test]
fn f16_has_the_bits_of_single_calls() {
    has_the_bits_of_single_calls::<f16>();
}

#[test]
fn bf16_has_the_bits_of_single_calls() {
    has_the_bits_of_single_calls::<bf16>();
}

/// Y, dX and every gradient are those of one call per adapter; rows without an adapter keep their bits.
fn has_the_bits_of_single_calls<E: Element>() {
    for (name, table) in tables() {
        let batch = Batch::<E>::random(&ops(), table, 3);
        let old = batch.old(4);
        for cpu in backends() {
            for accum in [Accum::Replace, Accum::Add] {
                let got = batch.run(&cpu, accum, &old);
                let want = one_by_one(&batch, &cpu, accum, &old);
                let differ = got.bits().iter().zip(want.bits()).position(|(got, want)| *got != want);
                assert_eq!(
                    differ,
                    None,
                    "{name}, {}, {accum:?}, {:?}: Y, dX, gradients",
                    E::DTYPE,
                    cpu.isa()
                );
            }
        }
    }
}

/// The same outputs by one forward and one backward call per adapter.
fn one_by_one<E: Element>(batch: &Batch<E>, cpu: &Cpu, accum: Accum, old: &Outputs<E>) -> Outputs<E> {
    let mut out = old.clone();
    for adapter in 0..batch.adapters.len() {
        let (p, rows) = (batch.problem(adapter), batch.rows(adapter));
        let (old_y, old_dx) = (old.y.select(Axis(0), &rows), old.dx.select(Axis(0), &rows));
        let adds = accum == Accum::Add;
        let (y, t) = call::forward(cpu, &p, adds.then_some(&old_y));
        let dx = if adds { Dx::Add(&old_dx) } else { Dx::Replace };
        let (dx, grad) = call::backward(cpu, &p, &t, dx, &old.grads[adapter]);
        let dx = dx.expect("dX was asked for");
        for (i, &row) in rows.iter().enumerate() {
            out.y.row_mut(row).assign(&y.row(i));
            out.dx.row_mut(row).assign(&dx.row(i));
        }
        out.grads[adapter] = grad;
    }
    out
}

#[test]
fn f32_agrees_with_the_oracle() {
    agrees_with_the_oracle::<f32>();
}

#[test]
fn f16_agrees_with_the_oracle() {
    agrees_with_the_oracle::<f16>();
}

#[test]
fn bf16_agrees_with_the_oracle() {
    agrees_with_the_oracle::<bf16>();
}

/// The rows and the gradient of each adapter are within the suite's bounds.
fn agrees_with_the_oracle<E: Element>() {
    for (name, table) in tables() {
        if name == "tall" {
            continue; // its bits are compared, and float64 products of its size take long
        }
        for cpu in backends() {
            let mut measures = vec![(Measures::default(), Measures::default()); ops().len()];
            for draw in 0..DRAWS {
                let batch = Batch::<E>::random(&ops(), table.clone(), draw);
                measure(&batch, &cpu, draw, &mut measures);
            }
            let batch = Batch::<E>::random(&ops(), table.clone(), 0);
            for (adapter, (ours, yardstick)) in measures.iter().enumerate() {
                if !batch.rows(adapter).is_empty() {
                    let p = batch.problem(adapter);
                    let like = oracle::solve(&p).results(&Old::for_problem(&p, 0));
                    let failures = ours.failures(yardstick, &p.op.shape, &like, E::DTYPE);
                    let place = format!("{name}, {}, adapter {adapter}, {:?}", E::DTYPE, cpu.isa());
                    assert!(failures.is_empty(), "{place}: {failures:?}");
                }
            }
        }
    }
}

/// Draws whose errors are pooled: the smallest output, dA of 13 elements, then has about a hundred.
const DRAWS: u64 = 8;

/// Adds the errors of a batch and of the plain computation, adapter by adapter.
fn measure<E: Element>(batch: &Batch<E>, cpu: &Cpu, draw: u64, measures: &mut [(Measures, Measures)]) {
    let old = batch.old(draw);
    let [replaced, added] = [Accum::Replace, Accum::Add].map(|accum| batch.run(cpu, accum, &old));
    for (adapter, (ours, yardstick)) in measures.iter_mut().enumerate() {
        let (p, rows) = (batch.problem(adapter), batch.rows(adapter));
        let wide = |m: &Array2<E>| m.select(Axis(0), &rows).iter().map(|v| v.to_f32().into()).collect();
        let old = Old {
            y: old.y.select(Axis(0), &rows),
            dx: old.dx.select(Axis(0), &rows),
            grad: old.grads[adapter].clone(),
        };
        let want = oracle::solve(&p).results(&old);
        let got = Results {
            // T has an order of its own, which only backward reads.
            t: want.t.clone(),
            y: wide(&replaced.y),
            y_added: wide(&added.y),
            dx: wide(&replaced.dx),
            dx_added: wide(&added.dx),
            grad: added.grads[adapter].iter().map(|&g| g.into()).collect(),
        };
        ours.add(&p.op.shape, &got, &want);
        yardstick.add(&p.op.shape, &same_dtype::results(&p, &old), &want);
    }
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    for (name, table) in tables() {
        let batch = Batch::<f32>::random(&ops(), table, 7);
        let old = batch.old(8);
        let run = |cpu: Cpu| batch.run(&cpu, Accum::Add, &old).bits();
        let want = run(Cpu::new().on(Team::Caller));
        let spawned = Team::Custom(|count, task| {
            std::thread::scope(|scope| (0..count).rev().for_each(|i| drop(scope.spawn(move || task(i)))));
        });
        assert!(want == run(Cpu::new().on(spawned)), "{name}: threads of its own");
        for threads in [1, 2, 3, 4] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            assert!(want == pool.install(|| run(Cpu::new())), "{name}: {threads} threads");
        }
    }
}

/// With dropout, a row's mask is that of its number in X: Y and dX are those of a call over all rows.
#[test]
fn a_rows_mask_is_that_of_its_number() {
    let dropout = Dropout::new(0.25).expect("legal");
    let ops: Vec<KronOp> = ops().into_iter().map(|op| op.with_dropout(dropout)).collect();
    let mut batch = Batch::<f32>::random(&ops, tables()[2].1.clone(), 9);
    let old = batch.old(10);
    let unmasked = batch.run(&Cpu::new(), Accum::Replace, &old);
    batch.key = Some(DropoutKey { seed: 5, offset: 6 });
    for cpu in backends() {
        let got = batch.run(&cpu, Accum::Replace, &old);
        assert!(got.y != unmasked.y && got.dx != unmasked.dx && got.grads != unmasked.grads);
        for adapter in 0..ops.len() {
            let rows = batch.rows(adapter);
            let mut p = batch.problem(adapter);
            (p.x, p.dy) = (batch.x.clone(), batch.dy.clone());
            // The other rows add nothing to the gradient.
            let others = (0..batch.table.len()).filter(|row| !rows.contains(row));
            others.for_each(|row| p.dy.row_mut(row).fill(0.0));
            let (y, t) = call::forward(&cpu, &p, None);
            let (dx, grad) = call::backward(&cpu, &p, &t, Dx::Replace, &old.grads[adapter]);
            let dx = dx.expect("dX was asked for");
            for row in rows {
                assert_eq!(got.y.row(row), y.row(row), "Y of row {row}, adapter {adapter}, {:?}", cpu.isa());
                assert_eq!(
                    got.dx.row(row),
                    dx.row(row),
                    "dX of row {row}, adapter {adapter}, {:?}",
                    cpu.isa()
                );
            }
            // The sums have another order; the suite bounds them elsewhere.
            let far =
                got.grads[adapter].iter().zip(&grad).filter(|(got, want)| (**got - **want).abs() > 1e-3);
            assert_eq!(far.count(), 0, "the gradient of adapter {adapter}, {:?}", cpu.isa());
        }
    }
}

/// Sizes of the arguments of a call over two adapters and four rows, right until a test makes one wrong.
struct Arguments {
    table: Vec<i32>,
    x: (usize, usize),
    y: (usize, usize),
    dx: (usize, usize),
    t: usize,
    grads: Vec<usize>,
    short: bool,
}

/// Makes one argument wrong.
type Change<'a> = &'a dyn Fn(&mut Arguments);

impl Arguments {
    /// The message of both passes, which must be equal where both take the wrong argument; or none.
    fn message(&self) -> [Option<String>; 2] {
        let shape = KronShape::kron(LAYER, Split { a_out: 16, a_in: 2 }, 8).expect("legal");
        let op = KronOp::new(shape, Scale::new(2.0).expect("finite"));
        let thetas = [1, 2].map(|seed| Theta::random(shape, seed));
        let entries = thetas.each_ref().map(|theta| PoolEntry { op, theta: theta.as_slice() });
        let pool = AdapterPool::new(&entries).expect("legal");
        let (cpu, x) = (Cpu::new(), Array2::<f32>::ones(self.x));
        let (mut y, mut dx, mut t) =
            (Array2::<f32>::ones(self.y), Array2::<f32>::ones(self.dx), vec![1.0; self.t]);
        let mut grads: Vec<Vec<f32>> = self.grads.iter().map(|&len| vec![1.0; len]).collect();
        let len = |pass| if self.short { 5 } else { cpu.segments_workspace_len(&pool, pass, 4) };
        let mut workspace = vec![0.0; len(Pass::Forward)];
        let call = ForwardSegments {
            x: x.view(),
            table: &self.table,
            y: y.view_mut(),
            accum: Accum::Add,
            t: &mut t,
            workspace: &mut workspace,
            dropout: None,
        };
        let forward = cpu.forward_segments(&pool, call).err().map(|e| e.to_string());
        let dy = Array2::<f32>::ones(self.y);
        let mut workspace = vec![0.0; len(Pass::Backward { dx: true })];
        let before = t.clone();
        let call = BackwardSegments {
            x: x.view(),
            table: &self.table,
            t: &t,
            dy: dy.view(),
            dx: Some((dx.view_mut(), Accum::Add)),
            grads: &mut grads.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
            workspace: &mut workspace,
            dropout: None,
        };
        let backward = cpu.backward_segments(&pool, call).err().map(|e| e.to_string());
        let ones = |values: &[f32]| values.iter().all(|&v| v == 1.0);
        if forward.is_some() {
            assert!(ones(y.as_slice().expect("whole")) && ones(&before), "forward wrote: {forward:?}");
        }
        if backward.is_some() {
            assert!(ones(dx.as_slice().expect("whole")), "backward wrote dX: {backward:?}");
            assert!(grads.iter().all(|grad| ones(grad)), "backward wrote gradients: {backward:?}");
        }
        [forward, backward]
    }
}

/// Every wrong argument is refused with its value and the rule, before anything is written.
#[test]
fn hostile_tables_and_lengths_are_refused() {
    let right = || Arguments {
        table: vec![1, -1, 0, 1],
        x: (4, 94),
        y: (4, 208),
        dx: (4, 94),
        t: 4 * 2 * 8,
        grads: vec![512; 2],
        short: false,
    };
    let with = |change: Change| {
        let mut arguments = right();
        change(&mut arguments);
        arguments.message()
    };
    assert_eq!(right().message(), [None, None]);
    assert_eq!(with(&|a| (a.table, a.grads[0]) = (vec![1, 1, -1, 1], 0)), [None, None]);
    let both: [(Change, &str); 7] = [
        (
            &|a| a.table[2] = 2,
            "table has adapter 2 for row 2, but a row has an adapter from 0 to 1, or -1 for none",
        ),
        (
            &|a| a.table[3] = -2,
            "table has adapter -2 for row 3, but a row has an adapter from 0 to 1, or -1 for none",
        ),
        (&|a| a.table[0] = i32::MIN, "table has adapter -2147483648 for row 0"),
        (&|a| a.table[0] = i32::MAX, "table has adapter 2147483647 for row 0"),
        (&|a| a.table.truncate(3), "table has 3 elements, but it is one per row of x, which has 4"),
        (&|a| a.x.1 = 95, "x has 4 × 95 elements, but every row is of d_in = 94"),
        (&|a| a.t -= 1, "t has 63 elements, but needs 64: n × the largest a_in·r of the pool is 4 × 16"),
    ];
    for (change, want) in both {
        for message in with(change) {
            let message = message.expect("an error");
            assert!(message.contains(want), "{message}");
        }
    }
    let backward: [(Change, &str); 4] = [
        (&|a| a.grads[1] = 0, "grad has 0 elements, but [A | B | C] of 208×94 kron (A 16×2) r 8 is"),
        (&|a| a.grads[0] = 511, "grad has 511 elements"),
        (&|a| a.grads.truncate(1), "grads has 1 gradients, but the pool has 2 adapters"),
        (&|a| a.dx.0 = 5, "dx has 5 × 94 elements, but it is 4 rows (as x has) of d_in = 94"),
    ];
    for (change, want) in backward {
        let [forward, backward] = with(change);
        assert_eq!(forward, None);
        let message = backward.expect("an error");
        assert!(message.contains(want), "{message}");
    }
    let [forward, backward] = with(&|a| a.y = (3, 208)).map(|message| message.expect("an error"));
    assert!(
        forward.contains("y has 3 × 208 elements, but it is 4 rows (as x has) of d_out = 208"),
        "{forward}"
    );
    assert!(backward.contains("dy has 3 × 208 elements"), "{backward}");
    for message in with(&|a| a.short = true) {
        let message = message.expect("an error");
        assert!(message.contains("workspace has 5 elements, but needs 6"), "{message}");
    }
}

#[test]
fn pools_that_do_not_fit_are_refused() {
    let shape = KronShape::lora(LAYER, 2).expect("legal");
    let op = KronOp::new(shape, Scale::new(1.0).expect("finite"));
    let other = KronShape::lora(LayerDims { d_out: 208, d_in: 95 }, 2).expect("legal");
    let theta = vec![0.0; 1000];
    let entry = |op: KronOp, len| PoolEntry { op, theta: &theta[..len] };
    let message = |entries: &[PoolEntry]| AdapterPool::new(entries).expect_err("an error").to_string();
    assert_eq!(message(&[]), "the pool has no adapter, but it needs at least one");
    let short = message(&[entry(op, 604), entry(op, 603)]);
    assert_eq!(short, "theta has 603 elements, but [A | B | C] of 208×94 lora r 2 is 0 + 416 + 188 = 604");
    let wide = message(&[entry(op, 604), entry(KronOp { shape: other, ..op }, 606)]);
    assert_eq!(wide, "adapter 1 is 208×95 lora r 2, but all adapters of the pool are of 208×94");
}
