//! Calls over segments: rows of many adapters of one shape, by an index table in device memory.

use kron_core::{Accum, DropoutKey, Element, Pass, Result};

use crate::backend::Cuda;
use crate::device::{DeviceSlice, DeviceSliceMut, Rows, RowsMut};
use crate::launch::{params, run};
use crate::launcher::Launcher;
use crate::params::KronParams;
use crate::plan::{LaunchPlan, segments_workspace_len};
use crate::pool::DevicePool;
use crate::{Problem, check};

/// Arguments of [`Cuda::forward_segments`].
#[derive(Debug)]
pub struct ForwardSegments<'a, E> {
    /// X, n × d_in.
    pub x: Rows<'a, E>,
    /// The slot of each row in the pool, in any order; −1 for a row without an adapter. Read when the kernels
    /// run, so a captured graph can be replayed with another table.
    pub table: DeviceSlice<'a, i32>,
    /// Y, n × d_out. Rows without a slot of the pool keep their bits.
    pub y: RowsMut<'a, E>,
    /// Treatment of the old contents of Y's rows.
    pub accum: Accum,
    /// T, n × a_in × r, in the order of X's rows; those of rows without a slot are not written. Keep it for backward.
    pub t: DeviceSliceMut<'a, f32>,
    /// Scratch, at least [`Cuda::segments_workspace_len`] elements.
    pub workspace: DeviceSliceMut<'a, f32>,
    /// Two numbers, written when the kernels run if there is a row: how many rows have neither −1 nor a slot of
    /// the pool, which are then rows without an adapter, and the number of the first of these, 2³² − 1 if none.
    pub status: DeviceSliceMut<'a, u32>,
    /// Key of the dropout mask, in which a row has its number in X; `None` in evaluation.
    pub dropout: Option<DropoutKey>,
}

/// Arguments of [`Cuda::backward_segments`].
#[derive(Debug)]
pub struct BackwardSegments<'a, E> {
    /// X of the forward call, n × d_in.
    pub x: Rows<'a, E>,
    /// Table of the forward call.
    pub table: DeviceSlice<'a, i32>,
    /// T of the forward call.
    pub t: DeviceSlice<'a, f32>,
    /// dY, n × d_out; rows without a slot of the pool are not read.
    pub dy: Rows<'a, E>,
    /// dX, n × d_in, and the treatment of its rows' old contents; rows without a slot of the pool keep their
    /// bits. `None` skips dX.
    pub dx: Option<(RowsMut<'a, E>, Accum)>,
    /// \[dA | dB | dC\] of each slot, as far apart as the θ of the pool, always added to; those of slots without
    /// a row are neither read nor written.
    pub grads: DeviceSliceMut<'a, f32>,
    /// Scratch, at least [`Cuda::segments_workspace_len`] elements.
    pub workspace: DeviceSliceMut<'a, f32>,
    /// As in [`ForwardSegments::status`].
    pub status: DeviceSliceMut<'a, u32>,
    /// Key of the forward call.
    pub dropout: Option<DropoutKey>,
}

impl<L: Launcher> Cuda<L> {
    /// Returns the float32 elements of scratch with which every call over segments of at most `rows` rows can
    /// run; 0 if a size exceeds the kernels' integers.
    pub fn segments_workspace_len(&self, pool: &DevicePool<'_>, pass: Pass, rows: usize) -> usize {
        segments_workspace_len(pool.op.shape, pass, rows).unwrap_or(0)
    }

    /// T = κ·X·Cᵀ and Y (+)= s·(A·T)·Bᵀ, each row with the adapter that the table names.
    ///
    /// A row's outputs have the same bits whatever rows stand beside it, and whatever their order. The launches
    /// depend on the numbers of rows and slots alone.
    ///
    /// # Errors
    /// Fails if a buffer does not fit, or the device refuses a launch. The table lies on the device and is
    /// checked there: see [`ForwardSegments::status`].
    pub fn forward_segments<E: Element>(
        &self,
        pool: &DevicePool<'_>,
        call: ForwardSegments<'_, E>,
    ) -> Result<()> {
        let (shape, n) = (pool.op.shape, call.x.rows);
        let x = check::rows("x", call.x.data.len(), n, shape.d_in(), call.x.stride)?;
        let y = check::rows("y", call.y.data.len(), call.y.rows, shape.d_out(), call.y.stride)?;
        check::row_count("y", call.y.rows, n)?;
        check::row_count("table", call.table.len(), n)?;
        check::len("t", call.t.len(), check::size("t", n, shape.t_row())?)?;
        check::len("status", call.status.len(), 2)?;
        let problem = Problem {
            shape,
            dtype: E::DTYPE,
            pass: Pass::Forward,
            rows: n,
            accumulate: call.accum == Accum::Add,
            aligned: false,
        };
        let plan = self.launcher().plan_segments(&problem, pool.slots)?;
        check::len("workspace", call.workspace.len(), plan.workspace)?;
        let mut p = segment_params(pool, &problem, &plan, call.dropout, call.workspace.pointer());
        p.x = call.x.data.pointer() as _;
        p.y = call.y.data.pointer() as _;
        (p.x_stride, p.y_stride) = (x as i64, y as i64);
        (p.t, p.key) = (call.t.pointer() as _, self.key());
        (p.table, p.status) = (call.table.pointer() as _, call.status.pointer() as _);
        run(self.launcher(), &problem, &plan, p, self.stream())
    }

    /// dX (+)= dT·C, and the gradient of each adapter over its rows.
    ///
    /// A gradient is a sum over the adapter's rows in the order of their numbers, so its bits do not depend on
    /// the other rows either.
    ///
    /// # Errors
    /// As [`Cuda::forward_segments`].
    pub fn backward_segments<E: Element>(
        &self,
        pool: &DevicePool<'_>,
        call: BackwardSegments<'_, E>,
    ) -> Result<()> {
        let (shape, n) = (pool.op.shape, call.x.rows);
        let x = check::rows("x", call.x.data.len(), n, shape.d_in(), call.x.stride)?;
        let dy = check::rows("dy", call.dy.data.len(), call.dy.rows, shape.d_out(), call.dy.stride)?;
        check::row_count("dy", call.dy.rows, n)?;
        check::row_count("table", call.table.len(), n)?;
        check::len("t", call.t.len(), check::size("t", n, shape.t_row())?)?;
        check::len("status", call.status.len(), 2)?;
        pool.check_len("grads", call.grads.len())?;
        if let Some((dx, _)) = &call.dx {
            check::row_count("dx", dx.rows, n)?;
            check::rows("dx", dx.data.len(), n, shape.d_in(), dx.stride)?;
        }
        let problem = Problem {
            shape,
            dtype: E::DTYPE,
            pass: Pass::Backward { dx: call.dx.is_some() },
            rows: n,
            accumulate: matches!(call.dx, Some((_, Accum::Add))),
            aligned: false,
        };
        let plan = self.launcher().plan_segments(&problem, pool.slots)?;
        check::len("workspace", call.workspace.len(), plan.workspace)?;
        let mut p = segment_params(pool, &problem, &plan, call.dropout, call.workspace.pointer());
        p.x = call.x.data.pointer() as _;
        p.dy = call.dy.data.pointer() as _;
        (p.x_stride, p.dy_stride) = (x as i64, dy as i64);
        if let Some((dx, _)) = &call.dx {
            p.dx = dx.data.pointer() as _;
            p.dx_stride = dx.stride as i64;
        }
        (p.t, p.key) = (call.t.pointer() as _, self.key());
        p.grad = call.grads.pointer() as _;
        (p.table, p.status) = (call.table.pointer() as _, call.status.pointer() as _);
        run(self.launcher(), &problem, &plan, p, self.stream())
    }
}

/// Fills the parameters that both passes have.
fn segment_params(
    pool: &DevicePool<'_>,
    problem: &Problem,
    plan: &LaunchPlan,
    key: Option<DropoutKey>,
    workspace: u64,
) -> KronParams {
    let part = |offset: usize| workspace + 4 * offset as u64;
    KronParams {
        scales: pool.scales.map_or(std::ptr::null(), |scales| scales.pointer() as _),
        order: part(plan.order.offset) as _,
        segments: part(plan.segments.offset) as _,
        u: part(plan.u.offset) as _,
        slot_stride: pool.stride as i64,
        slots: pool.slots as i32,
        tile_rows: plan.tile_rows as i32,
        ..params(problem, plan, &pool.op, pool.theta.pointer(), key, workspace)
    }
}
