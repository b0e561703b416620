//! Calls over a group: several adapters on one X.

use arrayvec::ArrayVec;
use kron_core::{
    Accum, AdapterGroup, Backend, Backward, Element, Error, Forward, Group, GroupTerm, KronOp, Pass, Result,
    ThetaBuffer,
};

use crate::backend::Cuda;
use crate::device::{DeviceSlice, DeviceSliceMut, Rows, RowsMut};
use crate::launch::{launch, params};
use crate::launcher::Launcher;
use crate::params::{KronParams, KronStacked};
use crate::plan::{GroupPlan, MAX_JOINED, group_workspace_len};
use crate::profile::Range;
use crate::tiles::group::STACKED;
use crate::{Problem, check};

impl ThetaBuffer for DeviceSlice<'_, f32> {
    fn elements(&self) -> usize {
        self.len()
    }
}

/// Adapter of a [`DeviceGroup`].
pub type DeviceTerm<'a> = GroupTerm<DeviceSlice<'a, f32>>;

/// Group of adapters in device memory.
///
/// Above 64 rows the calls over up to seven terms of one a_in and one mask read X once, and read and write dX
/// once, where that saves more than further launches cost. Others compute one term after the other.
pub type DeviceGroup<'a> = Group<'a, DeviceSlice<'a, f32>>;

/// Range of T.
type Span = std::ops::Range<usize>;

/// Problem of each term.
type Problems = ArrayVec<Problem, { AdapterGroup::MAX_TERMS }>;

/// Arguments of [`Cuda::forward_group`].
#[derive(Debug)]
pub struct ForwardGroup<'a, 'v, E> {
    /// X, n × d_in.
    pub x: Rows<'a, E>,
    /// Y of each output, n × its d_out, and the treatment of its old contents.
    pub ys: &'a mut [(RowsMut<'v, E>, Accum)],
    /// T, at least [`DeviceGroup::t_len`] elements; written. Keep it for backward.
    pub t: DeviceSliceMut<'a, f32>,
    /// Scratch, at least [`Cuda::group_workspace_len`] elements; its contents are lost.
    pub workspace: DeviceSliceMut<'a, f32>,
}

/// Arguments of [`Cuda::backward_group`].
#[derive(Debug)]
pub struct BackwardGroup<'a, 'v, E> {
    /// X of the forward call, n × d_in.
    pub x: Rows<'a, E>,
    /// T of the forward call.
    pub t: DeviceSlice<'a, f32>,
    /// dY of each output, n × its d_out.
    pub dys: &'a [Rows<'a, E>],
    /// dX, n × d_in, and the treatment of its old contents; `None` skips dX.
    pub dx: Option<(RowsMut<'a, E>, Accum)>,
    /// \[dA | dB | dC\] of each term, always added to.
    pub grads: &'a mut [DeviceSliceMut<'v, f32>],
    /// Scratch, at least [`Cuda::group_workspace_len`] elements; its contents are lost.
    pub workspace: DeviceSliceMut<'a, f32>,
}

impl<L: Launcher> Cuda<L> {
    /// Returns the float32 elements of scratch with which every call over at most `rows` rows of the group can
    /// run; 0 if a size exceeds the kernels' integers.
    pub fn group_workspace_len(&self, group: &DeviceGroup<'_>, pass: Pass, rows: usize) -> usize {
        let shapes: Vec<_> = group.shapes().copied().collect();
        group_workspace_len(&shapes, pass, rows).unwrap_or(0)
    }

    /// Computes the T of each term, and each Y (+)= the sum of its terms.
    ///
    /// # Errors
    /// Fails if a buffer does not fit, or the device refuses a launch.
    pub fn forward_group<E: Element>(
        &self,
        group: &DeviceGroup<'_>,
        mut call: ForwardGroup<'_, '_, E>,
    ) -> Result<()> {
        let n = call.x.rows;
        let x = check::rows("x", call.x.data.len(), n, group.d_in(), call.x.stride)?;
        count("ys", call.ys.len(), group.outputs(), "outputs")?;
        for (i, (y, _)) in call.ys.iter().enumerate() {
            check::rows("y", y.data.len(), y.rows, group.d_out(i).unwrap_or(0), y.stride)?;
            check::row_count("y", y.rows, n)?;
        }
        check::len("t", call.t.len(), group.t_len(n))?;
        let is_first =
            |k: usize| group.terms()[..k].iter().all(|term| term.output != group.terms()[k].output);
        let scratch = check::address(call.workspace.len(), call.workspace.pointer());
        let problem = |(k, (term, t)): (usize, (&DeviceTerm, Span))| {
            let (y, accum) = &call.ys[term.output];
            let accumulate = !is_first(k) || *accum == Accum::Add;
            let (t, y) = (call.t.pointer() + 4 * t.start as u64, (y.data.pointer(), y.stride));
            of_term::<E>(term, Pass::Forward, n, accumulate, [t, scratch], y)
        };
        let problems: Problems = group.with_t(n).enumerate().map(problem).collect();
        let aligned = check::aligned::<E>([0, 0, scratch], &[(call.x.data.pointer(), x)]);
        let over_x = Problem { accumulate: false, aligned, ..problems[0] };
        let Some(plan) = self.plan_group(group, &over_x, &problems, call.workspace.len())? else {
            for (k, (term, t)) in group.with_t(n).enumerate() {
                let (y, accum) = &mut call.ys[term.output];
                let forward = Forward {
                    theta: term.theta,
                    x: call.x,
                    y: y.reborrow(),
                    accum: if is_first(k) { *accum } else { Accum::Add },
                    t: call.t.reborrow().part(t)?,
                    workspace: call.workspace.reborrow(),
                    dropout: term.dropout,
                };
                self.forward(&term.op, forward)?;
            }
            return Ok(());
        };
        let joined = Joined { group, plan: &plan, problems: &problems, workspace: call.workspace.pointer() };
        let mut over = joined.over_x(self.key());
        over.x = call.x.data.pointer() as _;
        over.x_stride = x as i64;
        over.t = over.dt_parts;
        let mut alone = joined.alone(self.key());
        for (k, (term, t)) in group.with_t(n).enumerate() {
            let (y, _) = &call.ys[term.output];
            alone[k].y = y.data.pointer() as _;
            alone[k].y_stride = y.stride as i64;
            alone[k].t = (call.t.pointer() + 4 * t.start as u64) as _;
            over.stacked[k].t = alone[k].t;
        }
        self.run_joined(&plan, &over, &alone)
    }

    /// Adds to the gradient of each term, and computes dX (+)= the sum over all terms.
    ///
    /// # Errors
    /// As [`Cuda::forward_group`].
    pub fn backward_group<E: Element>(
        &self,
        group: &DeviceGroup<'_>,
        mut call: BackwardGroup<'_, '_, E>,
    ) -> Result<()> {
        let n = call.x.rows;
        let x = check::rows("x", call.x.data.len(), n, group.d_in(), call.x.stride)?;
        count("dys", call.dys.len(), group.outputs(), "outputs")?;
        for (i, dy) in call.dys.iter().enumerate() {
            check::rows("dy", dy.data.len(), dy.rows, group.d_out(i).unwrap_or(0), dy.stride)?;
            check::row_count("dy", dy.rows, n)?;
        }
        count("grads", call.grads.len(), group.terms().len(), "terms")?;
        for (grad, term) in call.grads.iter().zip(group.terms()) {
            check::theta_len("grad", grad.len(), &term.op.shape)?;
        }
        check::len("t", call.t.len(), group.t_len(n))?;
        let scratch = check::address(call.workspace.len(), call.workspace.pointer());
        let mut matrices = ArrayVec::<_, 2>::from_iter([(call.x.data.pointer(), x)]);
        if let Some((dx, _)) = &call.dx {
            check::row_count("dx", dx.rows, n)?;
            matrices.push((dx.data.pointer(), check::rows("dx", dx.data.len(), n, group.d_in(), dx.stride)?));
        }
        let problem = |(term, t): (&DeviceTerm, Span)| {
            let dy = &call.dys[term.output];
            let (t, dy) = (call.t.pointer() + 4 * t.start as u64, (dy.data.pointer(), dy.stride));
            of_term::<E>(term, Pass::Backward { dx: false }, n, false, [t, scratch], dy)
        };
        let problems: Problems = group.with_t(n).map(problem).collect();
        let over_x = Problem {
            pass: Pass::Backward { dx: call.dx.is_some() },
            accumulate: matches!(call.dx, Some((_, Accum::Add))),
            aligned: check::aligned::<E>([0, 0, scratch], &matrices),
            ..problems[0]
        };
        let Some(plan) = self.plan_group(group, &over_x, &problems, call.workspace.len())? else {
            for (k, (term, t)) in group.with_t(n).enumerate() {
                let dx = call
                    .dx
                    .as_mut()
                    .map(|(dx, accum)| (dx.reborrow(), if k == 0 { *accum } else { Accum::Add }));
                let backward = Backward {
                    theta: term.theta,
                    x: call.x,
                    t: call.t.part(t)?,
                    dy: call.dys[term.output],
                    dx,
                    grad: call.grads[k].reborrow(),
                    workspace: call.workspace.reborrow(),
                    dropout: term.dropout,
                };
                self.backward(&term.op, backward)?;
            }
            return Ok(());
        };
        let joined = Joined { group, plan: &plan, problems: &problems, workspace: call.workspace.pointer() };
        let mut over = joined.over_x(self.key());
        over.x = call.x.data.pointer() as _;
        over.x_stride = x as i64;
        if let Some((dx, _)) = &call.dx {
            over.dx = dx.data.pointer() as _;
            over.dx_stride = dx.stride as i64;
        }
        let mut alone = joined.alone(self.key());
        for (k, (term, t)) in group.with_t(n).enumerate() {
            let dy = &call.dys[term.output];
            alone[k].dy = dy.data.pointer() as _;
            alone[k].dy_stride = dy.stride as i64;
            alone[k].t = (call.t.pointer() + 4 * t.start as u64) as _;
            alone[k].grad = call.grads[k].pointer() as _;
            // `reduce` of a term finds its dC among the stack's.
            alone[k].dc_parts =
                over.dc_parts.wrapping_add(over.stacked[k].first as usize * over.c_in as usize);
            (alone[k].dc_splits, alone[k].dc_stride) = (over.dc_splits, over.dc_stride);
            over.stacked[k].dt_parts = alone[k].dt_parts;
            over.stacked[k].dt_splits = alone[k].dt_splits;
        }
        self.run_joined(&plan, &over, &alone)
    }

    /// Plans a joined call, unless the terms' masks differ. Scratch that is too short is refused before anything is
    /// queued, of a joined call or of one term after the other.
    fn plan_group(
        &self,
        group: &DeviceGroup<'_>,
        x: &Problem,
        terms: &[Problem],
        workspace: usize,
    ) -> Result<Option<GroupPlan>> {
        check::len("workspace", workspace, self.group_workspace_len(group, x.pass, x.rows))?;
        let plan = if group.has_one_mask() { self.launcher().plan_group(x, terms)? } else { None };
        if let Some(plan) = &plan {
            check::len("workspace", workspace, plan.workspace)?;
        }
        Ok(plan)
    }

    fn run_joined(&self, plan: &GroupPlan, over: &KronParams, alone: &[KronParams]) -> Result<()> {
        let _range = Range::of(&plan.stacked);
        plan.steps().try_for_each(|(term, step)| {
            let p = term.map_or(over, |k| &alone[k]);
            launch(self.launcher(), step, *p, self.stream())
        })
    }
}

/// Returns the problem of a term, whose own operands are a part of T, scratch, and Y or dY.
fn of_term<E: Element>(
    term: &DeviceTerm,
    pass: Pass,
    rows: usize,
    accumulate: bool,
    [t, scratch]: [u64; 2],
    matrix: (u64, usize),
) -> Problem {
    let aligned = check::aligned::<E>([term.theta.pointer(), t, scratch], &[matrix]);
    Problem { shape: term.op.shape, dtype: E::DTYPE, pass, rows, accumulate, aligned }
}

/// Fails unless there are as many operands as the group has outputs or terms.
fn count(what: &'static str, got: usize, want: usize, of: &str) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{got} elements"), rule: format!("the group has {want} {of}") })
}

/// A joined call before its pass's operands are known.
struct Joined<'a> {
    group: &'a DeviceGroup<'a>,
    plan: &'a GroupPlan,
    problems: &'a [Problem],
    workspace: u64,
}

impl Joined<'_> {
    /// Returns the parameters of the stacked adapter.
    fn over_x(&self, key: *const u64) -> KronParams {
        let (plan, first) = (self.plan, &self.group.terms()[0]);
        let op = KronOp { shape: plan.stacked.shape, ..first.op };
        let at = |offset: usize| self.workspace + 4 * offset as u64;
        let mut stacked = [KronStacked::default(); STACKED];
        let mut next = 0;
        for (place, term) in stacked.iter_mut().zip(self.group.terms()) {
            let s = &term.op.shape;
            place.c = (term.theta.pointer() + 4 * (s.a_len() + s.b_len()) as u64) as _;
            (place.first, place.rank) = (next, s.width() as i32);
            next += place.rank;
        }
        // The padding, if the stack has any.
        let padding = &mut stacked[self.group.terms().len()];
        (padding.first, padding.rank) = (next, op.shape.width() as i32 - next);
        KronParams {
            a: std::ptr::null(),
            b: std::ptr::null(),
            c: at(plan.c.offset) as _,
            dt_parts: at(plan.t.offset) as _,
            dt_splits: 1,
            stack: at(plan.c.offset) as _,
            stacked,
            key,
            ..params(&plan.stacked, &plan.over_x, &op, 0, first.dropout, self.workspace)
        }
    }

    /// Returns the parameters of each term.
    fn alone(&self, key: *const u64) -> ArrayVec<KronParams, MAX_JOINED> {
        let plans = self.plan.terms.iter().zip(&self.plan.at);
        let terms = self.group.terms().iter().zip(self.problems).zip(plans);
        let of = |((term, problem), (plan, &at)): ((&DeviceTerm, &Problem), (&_, &usize))| KronParams {
            key,
            ..params(
                problem,
                plan,
                &term.op,
                term.theta.pointer(),
                term.dropout,
                self.workspace + 4 * at as u64,
            )
        };
        terms.map(of).collect()
    }
}
