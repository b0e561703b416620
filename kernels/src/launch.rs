//! Calls: lengths are checked, the plan is made, parameters are filled, kernels launched.

use arrayvec::ArrayVec;

use kron_core::{
    Accum, Backward, Dropout, DropoutKey, Element, Error, Forward, KronOp, KronShape, Merge, Pass, Result,
};

use crate::Problem;
use crate::backend::Cuda;
use crate::device::{DeviceSlice, StreamHandle};
use crate::params::KronParams;
use crate::plan::{Parts, Plan, Step};
use crate::profile::Range;

/// Something that runs a kernel by its name: a GPU, or its emulation.
pub trait Launcher {
    /// How a problem is cut: as by [`Plan::new`] on every device, so that the bits do not depend on it;
    /// a test may ask one for plans of few blocks.
    ///
    /// # Errors
    /// As [`Plan::new`].
    fn plan(&self, problem: &Problem) -> Result<Plan> {
        Plan::new(problem)
    }

    /// Queues one launch on the stream.
    ///
    /// # Errors
    /// What the device, or its emulation, refused.
    ///
    /// # Safety
    /// Every pointer in `params` that the kernel reads or writes is good for
    /// the problem's sizes until the launch has run.
    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()>;
}

impl<L: Launcher> Launcher for &L {
    fn plan(&self, problem: &Problem) -> Result<Plan> {
        (**self).plan(problem)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        // SAFETY: the caller's promise about the pointers in `params`.
        unsafe { (**self).launch(step, params, stream) }
    }
}

/// Queues the forward kernels.
///
/// # Errors
/// A buffer that does not fit the problem, before anything is launched; or the launcher's error.
pub(crate) fn forward<L: Launcher, E: Element>(
    on: &L,
    op: &KronOp,
    call: Forward<'_, Cuda<L>, E>,
    stream: StreamHandle,
) -> Result<()> {
    let (f, n) = (op.shape, call.x.rows);
    let theta = check_theta(&f, call.theta)?;
    let x = check_rows("x", call.x.data.len(), n, f.d_in(), call.x.stride)?;
    let y = check_rows("y", call.y.data.len(), call.y.rows, f.d_out(), call.y.stride)?;
    check_count("y", call.y.rows, n)?;
    check_len("t", call.t.len(), size("t", n, f.t_row())?)?;
    let problem = Problem {
        shape: f,
        dtype: E::DTYPE,
        pass: Pass::Forward,
        rows: n,
        accumulate: call.accum == Accum::Add,
        aligned: aligned::<E>(theta, &[(call.x.data.pointer(), x), (call.y.data.pointer(), y)]),
    };
    let plan = on.plan(&problem)?;
    check_len("workspace", call.workspace.len(), plan.workspace)?;
    let mut p = params(&problem, &plan, op, theta, call.dropout, call.workspace.pointer());
    p.x = call.x.data.pointer() as _;
    p.y = call.y.data.pointer() as _;
    (p.x_stride, p.y_stride) = (x as i64, y as i64);
    p.t = call.t.pointer() as _;
    run(on, &problem, &plan, p, stream)
}

/// Queues the backward kernels.
///
/// # Errors
/// As [`forward`].
pub(crate) fn backward<L: Launcher, E: Element>(
    on: &L,
    op: &KronOp,
    call: Backward<'_, Cuda<L>, E>,
    stream: StreamHandle,
) -> Result<()> {
    let (f, n) = (op.shape, call.x.rows);
    let theta = check_theta(&f, call.theta)?;
    let x = check_rows("x", call.x.data.len(), n, f.d_in(), call.x.stride)?;
    let dy = check_rows("dy", call.dy.data.len(), call.dy.rows, f.d_out(), call.dy.stride)?;
    check_count("dy", call.dy.rows, n)?;
    check_len("t", call.t.len(), size("t", n, f.t_row())?)?;
    check_exactly("grad", call.grad.len(), &f)?;
    let both = [(call.x.data.pointer(), x), (call.dy.data.pointer(), dy)];
    let mut matrices = ArrayVec::<_, 3>::from_iter(both);
    if let Some((dx, _)) = &call.dx {
        check_count("dx", dx.rows, n)?;
        matrices.push((dx.data.pointer(), check_rows("dx", dx.data.len(), n, f.d_in(), dx.stride)?));
    }
    let problem = Problem {
        shape: f,
        dtype: E::DTYPE,
        pass: Pass::Backward { dx: call.dx.is_some() },
        rows: n,
        accumulate: matches!(call.dx, Some((_, Accum::Add))),
        aligned: aligned::<E>(theta, &matrices),
    };
    let plan = on.plan(&problem)?;
    check_len("workspace", call.workspace.len(), plan.workspace)?;
    let mut p = params(&problem, &plan, op, theta, call.dropout, call.workspace.pointer());
    p.x = call.x.data.pointer() as _;
    p.dy = call.dy.data.pointer() as _;
    (p.x_stride, p.dy_stride) = (x as i64, dy as i64);
    if let Some((dx, _)) = &call.dx {
        p.dx = dx.data.pointer() as _;
        p.dx_stride = dx.stride as i64;
    }
    p.t = call.t.pointer() as _;
    p.grad = call.grad.pointer() as _;
    // `down` alone leaves T in parts; here it is whole.
    p.t_splits = 1;
    run(on, &problem, &plan, p, stream)
}

/// Queues the merge kernel.
///
/// # Errors
/// As [`forward`].
pub(crate) fn merge<L: Launcher, E: Element>(
    on: &L,
    op: &KronOp,
    call: Merge<'_, Cuda<L>, E>,
    stream: StreamHandle,
) -> Result<()> {
    let f = op.shape;
    let theta = check_theta(&f, call.theta)?;
    let stride = check_rows("w", call.w.data.len(), call.w.rows, f.d_in(), call.w.stride)?;
    if call.first_row.checked_add(call.w.rows).is_none_or(|end| end > f.d_out()) {
        return Err(Error::Buffer {
            what: "w",
            got: format!("{} rows from row {}", call.w.rows, call.first_row),
            rule: format!("the weight has {} rows", f.d_out()),
        });
    }
    let problem = Problem {
        shape: f,
        dtype: E::DTYPE,
        pass: Pass::Merge,
        rows: call.w.rows,
        accumulate: call.accum == Accum::Add,
        aligned: aligned::<E>(theta, &[(call.w.data.pointer(), stride)]),
    };
    let plan = on.plan(&problem)?;
    let mut p = params(&problem, &plan, op, theta, None, 0);
    p.w = call.w.data.pointer() as _;
    p.w_stride = stride as i64;
    (p.first_row, p.w_rows) = (call.first_row as i64, call.w.rows as i64);
    run(on, &problem, &plan, p, stream)
}

fn run(
    on: &impl Launcher,
    problem: &Problem,
    plan: &Plan,
    mut p: KronParams,
    stream: StreamHandle,
) -> Result<()> {
    let _range = Range::of(problem);
    for step in &plan.steps {
        p.col_tiles = step.col_tiles as i32;
        p.cols = step.cols as i32;
        p.row_chunks = step.row_chunks as i32;
        p.chunk_rows = step.chunk_rows as i64;
        // SAFETY: the slices came from `DeviceSlice::from_raw`, whose maker
        // promised their memory to this launcher; their lengths were checked
        // against the problem, and the plan's parts lie inside the workspace.
        unsafe { on.launch(step, &p, stream)? };
    }
    Ok(())
}

fn params(
    problem: &Problem,
    plan: &Plan,
    op: &KronOp,
    theta: u64,
    key: Option<DropoutKey>,
    workspace: u64,
) -> KronParams {
    let f = &op.shape;
    let dropout = if key.is_some() { op.dropout } else { Dropout::NONE };
    let DropoutKey { seed, offset } = key.unwrap_or(DropoutKey { seed: 0, offset: 0 });
    let number = |index: usize| theta + 4 * index as u64;
    let part = |p: Parts| (workspace + 4 * p.offset as u64) as *mut f32;
    KronParams {
        a: if f.a_len() > 0 { number(0) as _ } else { std::ptr::null() },
        b: if f.rank().is_some() { number(f.a_len()) as _ } else { std::ptr::null() },
        c: number(f.a_len() + f.b_len()) as _,
        t_parts: part(plan.t),
        v: part(plan.v),
        dt_parts: part(plan.dt),
        da_parts: part(plan.da),
        db_parts: part(plan.db),
        dc_parts: part(plan.dc),
        rows: problem.rows as i64,
        a_out: f.a_out() as i32,
        a_in: f.a_in() as i32,
        b_out: f.b_out() as i32,
        c_in: f.c_in() as i32,
        rank: f.width() as i32,
        accumulate: problem.accumulate.into(),
        scale: op.scale.get(),
        keep_scale: dropout.keep_scale(),
        threshold: dropout.threshold(),
        seed,
        offset,
        t_splits: plan.t.count as i32,
        t_slice: plan.t_slice as i32,
        dt_splits: plan.dt.count as i32,
        da_splits: plan.da.count as i32,
        db_splits: plan.db.count as i32,
        dc_splits: plan.dc.count as i32,
        i_groups: plan.i_groups as i32,
        i_group: plan.i_group as i32,
        ..KronParams::default()
    }
}

/// Whether θ and every matrix's rows start on 16-byte boundaries.
fn aligned<E: Element>(theta: u64, matrices: &[(u64, usize)]) -> bool {
    let fits = |&(pointer, stride): &(u64, usize)| {
        pointer.is_multiple_of(16) && (stride * E::DTYPE.size()).is_multiple_of(16)
    };
    theta.is_multiple_of(16) && matrices.iter().all(fits)
}

fn check_theta(f: &KronShape, theta: DeviceSlice<'_, f32>) -> Result<u64> {
    check_exactly("theta", theta.len(), f)?;
    Ok(theta.pointer())
}

fn check_exactly(what: &'static str, len: usize, f: &KronShape) -> Result<()> {
    if len == f.params() {
        return Ok(());
    }
    let rule = format!("[A | B | C] is {} + {} + {} = {}", f.a_len(), f.b_len(), f.c_len(), f.params());
    Err(Error::Buffer { what, got: format!("{len} numbers"), rule })
}

fn check_len(what: &'static str, len: usize, need: usize) -> Result<()> {
    if len >= need {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{len} numbers"), rule: format!("this call needs {need}") })
}

fn check_count(what: &'static str, rows: usize, n: usize) -> Result<()> {
    if rows == n {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{rows} rows"), rule: format!("x has {n}") })
}

/// That `rows` rows of `width` elements fit; returns the stride.
fn check_rows(what: &'static str, len: usize, rows: usize, width: usize, stride: usize) -> Result<usize> {
    if stride < width {
        let rule = format!("its rows have {width} elements");
        return Err(Error::Buffer { what, got: format!("a stride of {stride}"), rule });
    }
    if rows > 0 && len < size(what, rows - 1, stride)?.saturating_add(width) {
        let rule = format!("{rows} rows of {width}, {stride} apart, need more");
        return Err(Error::Buffer { what, got: format!("{len} elements"), rule });
    }
    Ok(stride)
}

/// rows·width, at most what 64-bit indices of float32 numbers reach.
fn size(what: &'static str, rows: usize, width: usize) -> Result<usize> {
    rows.checked_mul(width).filter(|&n| n <= isize::MAX as usize / 8).ok_or_else(|| Error::Buffer {
        what,
        got: format!("{rows} rows of {width}"),
        rule: format!("a buffer has at most {} elements", isize::MAX as usize / 8),
    })
}
