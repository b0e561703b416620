//! Calls: lengths are checked, the plan is made, parameters are filled, kernels launched.

use arrayvec::ArrayVec;

use crate::device::{DeviceSlice, DeviceSliceMut, Rows, RowsMut, StreamHandle};
use crate::params::KronParams;
use crate::plan::{Parts, Plan, Step};
use crate::profile::Range;
use crate::{Element, Error, Factors, Pass, Problem, Result};

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

/// Dropout on the adapter's input, by Philox4x32-10.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Elements whose 16 random bits are below this are dropped: p·65536.
    pub threshold: u32,
    /// 1 / (1 − p).
    pub keep_scale: f32,
    /// The run's seed.
    pub seed: u64,
    /// Distinguishes layers and steps under one seed.
    pub offset: u64,
}

/// Arguments of [`forward`]: T = X·Cᵀ, U = A·T, Y (+)= s·U·Bᵀ.
#[derive(Debug)]
pub struct Forward<'a, E> {
    /// The factors' sizes.
    pub factors: Factors,
    /// s = alpha / r.
    pub scale: f32,
    /// `None` in evaluation.
    pub dropout: Option<Dropout>,
    /// θ, \[A | B | C\].
    pub theta: DeviceSlice<'a, f32>,
    /// X, rows × d_in.
    pub x: Rows<'a, E>,
    /// Y, rows × d_out.
    pub y: RowsMut<'a, E>,
    /// Whether Y is added to.
    pub accumulate: bool,
    /// T, rows × a_in × rank, written; keep it for backward.
    pub t: DeviceSliceMut<'a, f32>,
    /// Scratch of at least the plan's `workspace` numbers.
    pub workspace: DeviceSliceMut<'a, f32>,
}

/// Arguments of [`backward`].
#[derive(Debug)]
pub struct Backward<'a, E> {
    /// The factors' sizes.
    pub factors: Factors,
    /// s = alpha / r.
    pub scale: f32,
    /// As in the forward call.
    pub dropout: Option<Dropout>,
    /// θ of the forward call.
    pub theta: DeviceSlice<'a, f32>,
    /// X of the forward call, rows × d_in.
    pub x: Rows<'a, E>,
    /// T of the forward call.
    pub t: DeviceSlice<'a, f32>,
    /// dY, rows × d_out.
    pub dy: Rows<'a, E>,
    /// dX, rows × d_in; `None` skips it.
    pub dx: Option<RowsMut<'a, E>>,
    /// Whether dX is added to.
    pub accumulate: bool,
    /// θ's gradient, always added to.
    pub grad: DeviceSliceMut<'a, f32>,
    /// Scratch of at least the plan's `workspace` numbers.
    pub workspace: DeviceSliceMut<'a, f32>,
}

/// Arguments of [`merge`]: W (+)= s·A ⊗ (B·C).
#[derive(Debug)]
pub struct Merge<'a, E> {
    /// The factors' sizes.
    pub factors: Factors,
    /// s = alpha / r.
    pub scale: f32,
    /// θ, \[A | B | C\].
    pub theta: DeviceSlice<'a, f32>,
    /// W, d_out × d_in, or a band of its rows.
    pub w: RowsMut<'a, E>,
    /// The weight's row that `w` starts with.
    pub first_row: usize,
    /// Whether W is added to, or overwritten by rows of ΔW.
    pub accumulate: bool,
}

/// Queues the forward kernels and returns the plan that they follow.
///
/// # Errors
/// A buffer that does not fit the problem, before anything is launched; or the launcher's error.
pub fn forward<E: Element>(on: &impl Launcher, call: Forward<'_, E>, stream: StreamHandle) -> Result<Plan> {
    let (f, n) = (call.factors, call.x.rows);
    let theta = check_theta(&f, call.theta)?;
    let x = check_rows("x", call.x.data.len(), n, f.d_in(), call.x.stride)?;
    let y = check_rows("y", call.y.data.len(), call.y.rows, f.d_out(), call.y.stride)?;
    check_count("y", call.y.rows, n)?;
    check_len("t", call.t.len(), size("t", n, f.t_row())?)?;
    let problem = Problem {
        factors: f,
        dtype: E::FORMAT,
        pass: Pass::Forward,
        rows: n,
        accumulate: call.accumulate,
        aligned: aligned::<E>(theta, &[(call.x.data.pointer(), x), (call.y.data.pointer(), y)]),
    };
    let plan = on.plan(&problem)?;
    check_len("workspace", call.workspace.len(), plan.workspace)?;
    let mut p = params(&problem, &plan, theta, call.scale, call.dropout, call.workspace.pointer());
    p.x = call.x.data.pointer() as _;
    p.y = call.y.data.pointer() as _;
    (p.x_stride, p.y_stride) = (x as i64, y as i64);
    p.t = call.t.pointer() as _;
    run(on, &problem, &plan, p, stream)?;
    Ok(plan)
}

/// Queues the backward kernels and returns the plan that they follow.
///
/// # Errors
/// As [`forward`].
pub fn backward<E: Element>(on: &impl Launcher, call: Backward<'_, E>, stream: StreamHandle) -> Result<Plan> {
    let (f, n) = (call.factors, call.x.rows);
    let theta = check_theta(&f, call.theta)?;
    let x = check_rows("x", call.x.data.len(), n, f.d_in(), call.x.stride)?;
    let dy = check_rows("dy", call.dy.data.len(), call.dy.rows, f.d_out(), call.dy.stride)?;
    check_count("dy", call.dy.rows, n)?;
    check_len("t", call.t.len(), size("t", n, f.t_row())?)?;
    check_exactly("grad", call.grad.len(), &f)?;
    let both = [(call.x.data.pointer(), x), (call.dy.data.pointer(), dy)];
    let mut matrices = ArrayVec::<_, 3>::from_iter(both);
    if let Some(dx) = &call.dx {
        check_count("dx", dx.rows, n)?;
        matrices.push((dx.data.pointer(), check_rows("dx", dx.data.len(), n, f.d_in(), dx.stride)?));
    }
    let problem = Problem {
        factors: f,
        dtype: E::FORMAT,
        pass: Pass::Backward { dx: call.dx.is_some() },
        rows: n,
        accumulate: call.accumulate,
        aligned: aligned::<E>(theta, &matrices),
    };
    let plan = on.plan(&problem)?;
    check_len("workspace", call.workspace.len(), plan.workspace)?;
    let mut p = params(&problem, &plan, theta, call.scale, call.dropout, call.workspace.pointer());
    p.x = call.x.data.pointer() as _;
    p.dy = call.dy.data.pointer() as _;
    (p.x_stride, p.dy_stride) = (x as i64, dy as i64);
    if let Some(dx) = &call.dx {
        p.dx = dx.data.pointer() as _;
        p.dx_stride = dx.stride as i64;
    }
    p.t = call.t.pointer() as _;
    p.grad = call.grad.pointer() as _;
    // `down` alone leaves T in parts; here it is whole.
    p.t_splits = 1;
    run(on, &problem, &plan, p, stream)?;
    Ok(plan)
}

/// Queues the merge kernel and returns the plan that it follows.
///
/// # Errors
/// As [`forward`].
pub fn merge<E: Element>(on: &impl Launcher, call: Merge<'_, E>, stream: StreamHandle) -> Result<Plan> {
    let f = call.factors;
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
        factors: f,
        dtype: E::FORMAT,
        pass: Pass::Merge,
        rows: call.w.rows,
        accumulate: call.accumulate,
        aligned: aligned::<E>(theta, &[(call.w.data.pointer(), stride)]),
    };
    let plan = on.plan(&problem)?;
    let mut p = params(&problem, &plan, theta, call.scale, None, 0);
    p.w = call.w.data.pointer() as _;
    p.w_stride = stride as i64;
    (p.first_row, p.w_rows) = (call.first_row as i64, call.w.rows as i64);
    run(on, &problem, &plan, p, stream)?;
    Ok(plan)
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
    theta: u64,
    scale: f32,
    dropout: Option<Dropout>,
    workspace: u64,
) -> KronParams {
    let f = &problem.factors;
    let off = Dropout { threshold: 0, keep_scale: 1.0, seed: 0, offset: 0 };
    let dropout = dropout.unwrap_or(off);
    let number = |index: usize| theta + 4 * index as u64;
    let part = |p: Parts| (workspace + 4 * p.offset as u64) as *mut f32;
    KronParams {
        a: if f.a_len() > 0 { number(0) as _ } else { std::ptr::null() },
        b: if f.low_rank() { number(f.a_len()) as _ } else { std::ptr::null() },
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
        rank: f.rank() as i32,
        accumulate: problem.accumulate.into(),
        scale,
        keep_scale: dropout.keep_scale,
        threshold: dropout.threshold,
        seed: dropout.seed,
        offset: dropout.offset,
        t_splits: plan.t.count as i32,
        t_slice: plan.t_slice as i32,
        dt_splits: plan.dt.count as i32,
        da_splits: plan.da.count as i32,
        db_splits: plan.db.count as i32,
        dc_splits: plan.dc.count as i32,
        a_row_groups: plan.a_row_groups as i32,
        rows_per_group: plan.rows_per_group as i32,
        ..KronParams::default()
    }
}

/// Whether θ and every matrix's rows start on 16-byte boundaries.
fn aligned<E: Element>(theta: u64, matrices: &[(u64, usize)]) -> bool {
    let fits = |&(pointer, stride): &(u64, usize)| {
        pointer.is_multiple_of(16) && (stride * E::FORMAT.size()).is_multiple_of(16)
    };
    theta.is_multiple_of(16) && matrices.iter().all(fits)
}

fn check_theta(f: &Factors, theta: DeviceSlice<'_, f32>) -> Result<u64> {
    check_exactly("theta", theta.len(), f)?;
    Ok(theta.pointer())
}

fn check_exactly(what: &'static str, len: usize, f: &Factors) -> Result<()> {
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
