//! One call over the rows of many adapters. The rows are sorted by adapter, and each segment is computed
//! as the call over its rows alone computes it, with the same bits.
//!
//! A segment that is a large part of the call runs on the whole team. The others are shared out in
//! tasks of consecutive adapters, of about equal cost, each on one thread. No bit depends on the tasks, so
//! there are no more than the threads can use: each has a scratch, which should stay in a cache.

use std::ops::Range;

use super::device::Cpu;
use super::partition::{MAX_PARTS, Partitioned, RowPartition};
use super::pool::{AdapterPool, BackwardSegments, ForwardSegments, PoolEntry};
use super::team::Team;
use super::{backward, check, forward};
use crate::simd::{Isa, Kernels, Products, RowGrid, RowGridMut, RowOrder};
use crate::{Element, KronOp, Pass, Result};

/// Largest share of a call's rows that a segment of several partitions has on one thread, 1 / `ALONE`.
const ALONE: usize = 16;

/// Multiply-adds that take as long as reading one element of θ from memory.
const READ_WORK: usize = 16;

/// Tasks per thread: a thread that is late leaves its second task to another.
const TASKS: usize = 2;

/// Multiply-adds below which a task is not worth a second thread.
const MIN_WORK: usize = 1 << 20;

/// Returns the float32 elements of scratch that every call over at most `rows` rows can run with.
pub(super) fn workspace_len(isa: Isa, pool: &AdapterPool, pass: Pass, rows: usize) -> usize {
    let (mut task, mut alone, mut last) = (0, 0, None);
    for PoolEntry { op, .. } in pool.adapters() {
        // Most pools have one shape.
        if last.replace(op) == Some(op) {
            continue;
        }
        let bounds = |rows| RowPartition::bounds(Partitioned::of(pass), &op.shape, rows);
        let len = |partition| segment_len(isa, op, pass, partition);
        // The largest of one partition, and the largest that may be on one thread for its share of the rows.
        task = task.max(bounds(rows).next().map_or(0, len));
        task = task.max(bounds(rows / ALONE).map(len).max().unwrap_or(0));
        alone = alone.max(bounds(rows).map(len).max().unwrap_or(0));
    }
    let tasks = MAX_PARTS.min(pool.adapters().len()).min(rows);
    RowOrder::scratch_len(pool.adapters().len(), rows) + alone.max(tasks * task)
}

/// Elements that the call over one segment takes.
fn segment_len(isa: Isa, op: &KronOp, pass: Pass, partition: RowPartition) -> usize {
    match pass {
        Pass::Backward { dx } => backward::layout(isa, op, partition, dx).call.workspace_len(),
        Pass::Forward | Pass::Merge => forward::layout(isa, op, partition).workspace_len(),
    }
}

/// A call's segments, and how they are shared out.
struct Segments<'a> {
    pool: &'a AdapterPool<'a>,
    order: RowOrder<'a>,
    pass: Pass,
    tasks: usize,
    /// Elements of one task's scratch, and of the largest segment on the whole team.
    task_len: usize,
    alone_len: usize,
    /// Multiply-adds of all tasks.
    work: usize,
}

impl<'a> Segments<'a> {
    fn new(cpu: Cpu, pool: &'a AdapterPool, order: RowOrder<'a>, pass: Pass) -> Self {
        let mut all = Self { pool, order, pass, tasks: 0, task_len: 0, alone_len: 0, work: 0 };
        let mut last = None;
        for (i, PoolEntry { op, .. }) in pool.adapters().iter().enumerate() {
            let rows = order.count(i);
            all.work = all.work.saturating_add(all.work(i));
            if rows == 0 || last.replace((op, rows)) == Some((op, rows)) {
                continue;
            }
            let len = segment_len(cpu.isa, op, pass, all.partition(i));
            let most = if all.is_alone(i) { &mut all.alone_len } else { &mut all.task_len };
            *most = len.max(*most);
        }
        let threads = cpu.team.threads();
        let tasks = if threads == 1 { 1 } else { (TASKS * threads).min(MAX_PARTS) };
        all.tasks = (all.work / MIN_WORK).clamp(1, tasks).min(order.len()).min(pool.adapters().len());
        all
    }

    /// Elements of the scratch.
    fn len(&self) -> usize {
        self.alone_len.max(self.tasks * self.task_len)
    }

    /// Returns the partition of a segment, which a backward call over its rows alone has too.
    fn partition(&self, adapter: usize) -> RowPartition {
        let (shape, rows) = (&self.pool.adapters()[adapter].op.shape, self.order.count(adapter));
        RowPartition::new(Partitioned::of(self.pass), shape, rows)
    }

    /// Returns true if a segment runs on the whole team.
    fn is_alone(&self, adapter: usize) -> bool {
        self.order.count(adapter) * ALONE > self.order.len() && self.partition(adapter).parts > 1
    }

    /// Multiply-adds of a segment within a task, its reading of θ included.
    fn work(&self, adapter: usize) -> usize {
        let (s, rows) = (&self.pool.adapters()[adapter].op.shape, self.order.count(adapter));
        if rows == 0 || self.is_alone(adapter) {
            return 0;
        }
        let once = READ_WORK.saturating_mul(s.params());
        once.saturating_add(rows.saturating_mul(s.d_in() + s.d_out()).saturating_mul(s.width()))
    }

    /// Adapters of the segments that run on the whole team.
    fn alone(&self) -> impl Iterator<Item = usize> {
        (0..self.pool.adapters().len()).filter(|&i| self.order.count(i) > 0 && self.is_alone(i))
    }

    /// Adapters of each task, in turn.
    fn tasks(&self) -> impl Iterator<Item = Range<usize>> {
        let (mut next, mut work) = (0, 0usize);
        (1..=self.tasks).map(move |task| {
            let first = next;
            let share = self.work / self.tasks * task;
            while next < self.pool.adapters().len() && (task == self.tasks || work < share) {
                work = work.saturating_add(self.work(next));
                next += 1;
            }
            first..next
        })
    }

    /// Number of sorted rows of some adapters.
    fn rows(&self, adapters: Range<usize>) -> usize {
        adapters.map(|i| self.order.count(i)).sum()
    }

    /// Elements of T of `rows` sorted rows.
    fn t_len(&self, rows: usize) -> usize {
        self.pool.t_len(rows)
    }
}

pub(super) fn forward<E: Element>(cpu: Cpu, pool: &AdapterPool, call: ForwardSegments<'_, E>) -> Result<()> {
    check::forward_segments(pool, &call)?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let ForwardSegments { x, table, y, accum, t, workspace, dropout } = call;
    let (sorting, scratch) = check::sorting(pool, table, workspace)?;
    let order = RowOrder::new(table, pool.adapters().len(), sorting);
    let segments = Segments::new(cpu, pool, order, Pass::Forward);
    check::segments_scratch(Pass::Forward, scratch.len(), segments.len(), table.len())?;
    let x = RowGrid::of_order(x, order);
    let mut y = RowGridMut::of_order(y, order);
    let mut t = &mut t[..segments.t_len(order.len())];
    let one = |team, i: usize, y: RowGridMut<'_, E>, t: &mut [f32], scratch: &mut [f32]| {
        let PoolEntry { op, theta } = &pool.adapters()[i];
        let x = x.tokens(order.start(i), order.count(i));
        let (first, t) = (x.number(0, 0), &mut t[..op.t_len(order.count(i))]);
        let rows = forward::Rows { first, x: x.compact(), outputs: [Some((y.compact(), accum))] };
        let layout = forward::layout(cpu.isa, op, segments.partition(i));
        let term = forward::TermCall { op, theta, output: 0, dropout, t, layout, workspace: scratch };
        forward::compute(team, kernels, rows, [Some(term)]);
    };
    for i in segments.alone() {
        let (first, n) = (order.start(i), order.count(i));
        let t = &mut t[segments.t_len(first)..];
        one(cpu.team, i, y.tokens(first, n), t, scratch);
    }
    let tasks = segments.tasks().zip(scratch.chunks_mut(segments.task_len.max(1)));
    let tasks = tasks.map(|(adapters, scratch)| {
        let n = segments.rows(adapters.clone());
        let part = t.split_off_mut(..segments.t_len(n)).unwrap_or_default();
        (adapters, y.split_off_front(n), part, scratch)
    });
    cpu.team.for_short(segments.tasks).each(tasks, |_, (adapters, mut y, mut t, scratch)| {
        for i in adapters {
            let n = order.count(i);
            let y = y.split_off_front(n);
            let t = t.split_off_mut(..segments.t_len(n)).unwrap_or_default();
            if n > 0 && !segments.is_alone(i) {
                one(Team::Caller, i, y, t, scratch);
            }
        }
    });
    Ok(())
}

pub(super) fn backward<E: Element>(
    cpu: Cpu,
    pool: &AdapterPool,
    call: BackwardSegments<'_, '_, E>,
) -> Result<()> {
    let pass = Pass::Backward { dx: call.dx.is_some() };
    check::backward_segments(pool, &call)?;
    let kernels = Kernels::new(cpu.isa, E::DTYPE, Products::Native)?;
    let BackwardSegments { x, table, t, dy, dx, mut grads, workspace, dropout } = call;
    let (sorting, scratch) = check::sorting(pool, table, workspace)?;
    let order = RowOrder::new(table, pool.adapters().len(), sorting);
    check::grads(pool, &order, grads)?;
    let segments = Segments::new(cpu, pool, order, pass);
    check::segments_scratch(pass, scratch.len(), segments.len(), table.len())?;
    let (x, dy) = (RowGrid::of_order(x, order), RowGrid::of_order(dy, order));
    let mut dx = dx.map(|(dx, accum)| (RowGridMut::of_order(dx, order), accum));
    let one = |team, i: usize, dx: backward::Dx<'_, E>, grad: &mut [f32], scratch: &mut [f32]| {
        let PoolEntry { op, theta } = &pool.adapters()[i];
        let (first, n) = (order.start(i), order.count(i));
        let t = &t[segments.t_len(first)..][..op.t_len(n)];
        let (x, dy) = (x.tokens(first, n), dy.tokens(first, n).compact());
        let dx = dx.map(|(dx, accum)| (dx.compact(), accum));
        let layout = backward::layout(cpu.isa, op, segments.partition(i), dx.is_some());
        let term = backward::TermCall { op, theta, dy, dropout, t, grad, layout, workspace: scratch };
        let rows = backward::Rows { first: x.number(0, 0), x: x.compact(), dx };
        backward::compute(team, kernels, rows, [Some(term)]);
    };
    for i in segments.alone() {
        let dx = dx.as_mut().map(|(dx, accum)| (dx.tokens(order.start(i), order.count(i)), *accum));
        one(cpu.team, i, dx, grads[i], scratch);
    }
    let tasks = segments.tasks().zip(scratch.chunks_mut(segments.task_len.max(1)));
    let tasks = tasks.map(|(adapters, scratch)| {
        let n = segments.rows(adapters.clone());
        let dx = dx.as_mut().map(|(dx, accum)| (dx.split_off_front(n), *accum));
        let grads = grads.split_off_mut(..adapters.len()).unwrap_or_default();
        (adapters, dx, grads, scratch)
    });
    cpu.team.for_short(segments.tasks).each(tasks, |_, (adapters, mut dx, grads, scratch)| {
        for (i, grad) in adapters.zip(grads) {
            let n = order.count(i);
            let dx = dx.as_mut().map(|(dx, accum)| (dx.split_off_front(n), *accum));
            if n > 0 && !segments.is_alone(i) {
                one(Team::Caller, i, dx, grad, scratch);
            }
        }
    });
    Ok(())
}
