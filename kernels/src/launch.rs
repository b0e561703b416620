//! From a plan to launches: kernel parameters and the queue.

use kron_core::{Dropout, DropoutKey, KronOp, Result};

use crate::Problem;
use crate::device::StreamHandle;
use crate::launcher::Launcher;
use crate::params::KronParams;
use crate::plan::{LaunchPlan, Parts, Step};
use crate::profile::Range;

/// Queues the launches of a plan.
pub(crate) fn run(
    on: &impl Launcher,
    problem: &Problem,
    plan: &LaunchPlan,
    p: KronParams,
    stream: StreamHandle,
) -> Result<()> {
    let _range = Range::of(problem);
    plan.steps.iter().try_for_each(|step| launch(on, step, p, stream))
}

/// Queues one launch.
pub(crate) fn launch(on: &impl Launcher, step: &Step, mut p: KronParams, stream: StreamHandle) -> Result<()> {
    p.col_tiles = step.col_tiles as i32;
    p.cols = step.cols as i32;
    p.row_chunks = step.row_chunks as i32;
    p.chunk_rows = step.chunk_rows as i64;
    p.tiles = step.tiles as i32;
    // SAFETY: the slices came from `DeviceSlice::from_raw`, whose caller
    // promised their memory to this launcher; so did those of a group's terms.
    // Their lengths were checked against the problem, and the plan's parts lie
    // inside the workspace.
    unsafe { on.launch(step, &p, stream) }
}

/// Fills the parameters that do not depend on the pass.
pub(crate) fn params(
    problem: &Problem,
    plan: &LaunchPlan,
    op: &KronOp,
    theta: u64,
    key: Option<DropoutKey>,
    workspace: u64,
) -> KronParams {
    let shape = &op.shape;
    let dropout = if key.is_some() { op.dropout } else { Dropout::NONE };
    let DropoutKey { seed, offset } = key.unwrap_or(DropoutKey { seed: 0, offset: 0 });
    let element = |index: usize| theta + 4 * index as u64;
    let part = |p: Parts| (workspace + 4 * p.offset as u64) as *mut f32;
    KronParams {
        a: if shape.a_len() > 0 { element(0) as _ } else { std::ptr::null() },
        b: if shape.rank().is_some() { element(shape.a_len()) as _ } else { std::ptr::null() },
        c: element(shape.a_len() + shape.b_len()) as _,
        t_parts: part(plan.t),
        v: part(plan.v),
        dt_parts: part(plan.dt),
        da_parts: part(plan.da),
        db_parts: part(plan.db),
        dc_parts: part(plan.dc),
        rows: problem.rows as i64,
        a_out: shape.a_out() as i32,
        a_in: shape.a_in() as i32,
        b_out: shape.b_out() as i32,
        c_in: shape.c_in() as i32,
        rank: shape.width() as i32,
        accumulate: problem.accumulate.into(),
        scale: op.scale.get(),
        keep_scale: dropout.keep_scale(),
        threshold: dropout.threshold(),
        seed,
        offset,
        t_splits: plan.t.count as i32,
        t_slice: plan.t_slice as i32,
        t_longer: plan.t_longer as i32,
        dt_splits: plan.dt.count as i32,
        da_splits: plan.da.count as i32,
        db_splits: plan.db.count as i32,
        dc_splits: plan.dc.count as i32,
        dc_stride: shape.c_len() as i64,
        a_row_groups: plan.a_row_groups as i32,
        rows_per_group: plan.rows_per_group as i32,
        ..KronParams::default()
    }
}
