//! Forward, backward and merge allocate nothing. One test in a file of its
//! own: the allocator counts the whole process.

use half::bf16;
use kron_core::{
    Accum, AdapterPool, Backend, Backward, BackwardSegments, Cpu, Element, Forward, ForwardSegments, Merge,
    Pass, PoolEntry,
};
use kron_tests::backends;
use kron_tests::batch::Batch;
use kron_tests::cases;
use kron_tests::inputs::{Old, Problem};
use ndarray::Array2;
use rayon::prelude::*;
use std::sync::Barrier;

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// Inside a pool nothing is allocated. From outside, each further thread takes a
/// job from a queue of rayon's (crossbeam-deque's `Injector`) that grows by one
/// block per 63 jobs, whatever the size of the problem.
#[test]
fn calls_allocate_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
    pool.install(wake_every_thread);
    for name in ["paper", "paper-tall", "lora-tall", "krona-tall", "dropout-tall", "outer-64", "rank-256"] {
        for cpu in backends() {
            for mut passes in [passes::<f32>(cpu, name), passes::<bf16>(cpu, name)] {
                let counts = pool.install(|| {
                    passes();
                    counted(3, &mut passes)
                });
                assert_eq!(counts, (0, 0), "{name} on {:?}: (blocks, bytes) inside a pool", cpu.isa());
            }
        }
    }

    for cpu in backends() {
        let mut passes = segments(cpu);
        let counts = pool.install(|| {
            passes();
            counted(3, &mut passes)
        });
        assert_eq!(counts, (0, 0), "segments on {:?}: (blocks, bytes) inside a pool", cpu.isa());
    }

    wake_every_thread();
    for name in ["paper", "dropout-tall"] {
        let mut passes = passes::<f32>(Cpu::new(), name);
        passes();
        let (blocks, bytes) = counted(63, &mut passes);
        let further = LOOPS * (rayon::current_num_threads() as u64 - 1);
        let (jobs, grown) = (63 * further, further + 1);
        assert!(blocks <= jobs + grown, "{name}: {blocks} blocks from outside a pool");
        assert!(bytes <= JOB_BYTES * jobs + BLOCK_BYTES * grown, "{name}: {bytes} bytes from outside a pool");
    }
}

/// Parallel loops in the three passes together, at most: one each, and one in
/// backward that reduces the gradients. 63 rounds so grow the queue by as many blocks for each further thread.
const LOOPS: u64 = 4;

/// A job, at most: the loop, its scope and its state.
const JOB_BYTES: u64 = 64;

/// A block of the queue, at most: 64 slots of a job (two words) and a state, and a link.
const BLOCK_BYTES: u64 = 64 * 24 + 16;

/// A worker registers itself for memory reclamation when it first steals: let
/// that happen before anything is counted.
fn wake_every_thread() {
    let threads = rayon::current_num_threads();
    let all_here = Barrier::new(threads);
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        all_here.wait();
    });
}

/// Blocks and bytes that are allocated by `rounds` times the three passes.
fn counted(rounds: usize, passes: &mut dyn FnMut()) -> (u64, u64) {
    let before = dhat::HeapStats::get();
    for _ in 0..rounds {
        passes();
    }
    let after = dhat::HeapStats::get();
    (after.total_blocks - before.total_blocks, after.total_bytes - before.total_bytes)
}

/// The three passes of one problem, with all that they need made beforehand.
fn passes<E: Element>(cpu: Cpu, name: &str) -> Box<dyn FnMut() + Send> {
    let case = cases::case_by_name(name);
    let rows = *case.rows.iter().max().expect("a case has rows");
    let p = Problem::<E>::of_case(&case, rows, 1);
    let Old { mut y, mut dx, mut grad } = Old::for_problem(&p, 2);
    let s = p.op.shape;
    let mut w = Array2::from_elem((s.d_out(), s.d_in()), E::from_f32(0.0));
    let mut t = vec![0.0f32; p.op.t_len(rows)];
    let len = |pass, rows| cpu.workspace_len(&p.op, pass, rows);
    let lens =
        [len(Pass::Forward, rows), len(Pass::Backward { dx: true }, rows), len(Pass::Merge, s.d_out())];
    let mut workspace = vec![0.0f32; lens.into_iter().max().unwrap_or(0)];
    Box::new(move || {
        let forward = Forward {
            theta: p.theta.as_slice(),
            x: p.x.view(),
            y: y.view_mut(),
            accum: Accum::Replace,
            t: t.as_mut_slice(),
            workspace: workspace.as_mut_slice(),
            dropout: p.key,
        };
        cpu.forward(&p.op, forward).expect("a legal call");
        let backward = Backward {
            theta: p.theta.as_slice(),
            x: p.x.view(),
            t: t.as_slice(),
            dy: p.dy.view(),
            dx: Some((dx.view_mut(), Accum::Replace)),
            grad: grad.as_mut_slice(),
            workspace: workspace.as_mut_slice(),
            dropout: p.key,
        };
        cpu.backward(&p.op, backward).expect("a legal call");
        let merge = Merge {
            theta: p.theta.as_slice(),
            w: w.view_mut(),
            first_row: 0,
            accum: Accum::Replace,
            workspace: workspace.as_mut_slice(),
        };
        cpu.merge(&p.op, merge).expect("a legal call");
    })
}

/// Adapters of [`segments`].
const ADAPTERS: usize = 40;

/// Both passes over the rows of many adapters, one of which has most rows, with all that they need made beforehand.
fn segments(cpu: Cpu) -> Box<dyn FnMut() + Send> {
    let ops = [cases::case_by_name("paper-tall").op(); ADAPTERS];
    let table = (0..2_000).map(|i: i32| if i % 4 == 0 { i * 7 % ADAPTERS as i32 } else { 39 }).collect();
    let batch = Batch::<f32>::random(&ops, table, 1);
    let (rows, mut out) = (batch.table.len(), batch.old(2));
    let (mut t, mut workspace) = (vec![0.0f32; ops[0].t_len(rows)], Vec::new());
    Box::new(move || {
        let entries: [PoolEntry; ADAPTERS] = std::array::from_fn(|i| {
            let (op, theta) = &batch.adapters[i];
            PoolEntry { op: *op, theta: theta.as_slice() }
        });
        let pool = AdapterPool::new(&entries).expect("a legal pool");
        let lens = [Pass::Forward, Pass::Backward { dx: true }]
            .map(|pass| cpu.segments_workspace_len(&pool, pass, rows));
        // The first call, which is not counted, makes the workspace.
        workspace.resize(lens[0].max(lens[1]), 0.0f32);
        let forward = ForwardSegments {
            x: batch.x.view(),
            table: &batch.table,
            y: out.y.view_mut(),
            accum: Accum::Replace,
            t: &mut t,
            workspace: &mut workspace,
            dropout: None,
        };
        cpu.forward_segments(&pool, forward).expect("a legal call");
        let mut grads = out.grads.iter_mut();
        let mut grads: [&mut [f32]; ADAPTERS] =
            std::array::from_fn(|_| grads.next().map(Vec::as_mut_slice).unwrap_or_default());
        let backward = BackwardSegments {
            x: batch.x.view(),
            table: &batch.table,
            t: &t,
            dy: batch.dy.view(),
            dx: Some((out.dx.view_mut(), Accum::Replace)),
            grads: &mut grads,
            workspace: &mut workspace,
            dropout: None,
        };
        cpu.backward_segments(&pool, backward).expect("a legal call");
    })
}
