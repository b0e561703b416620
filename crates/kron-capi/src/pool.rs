//! Calls over the rows of a pool: many adapters of one shape in a device's memory.

use kron_core::{Element, Pass, Result};
use kron_kernels::{
    BackwardSegments, Cuda, DevicePool, DeviceSlice, DeviceSliceMut, ForwardSegments, Launcher,
};

use crate::call::{accum, checked, extent, floats, key, matrix};
use crate::dispatch::{DeviceJob, on_device};
use crate::dtype::with_dtype;
use crate::overlap::{self, Span};
use crate::pointers::FromPointers;
use crate::pool_types::{KronBackwardPool, KronForwardPool, KronPool};
use crate::types::{KronDevice, KronManySizes};

impl KronPool {
    /// Elements of all slots.
    fn len(&self) -> Result<usize> {
        let params = self.op.parse()?.shape.params();
        let before = extent::<f32>("theta", self.slots.saturating_sub(1), self.stride)?;
        extent::<f32>("theta", 1, before.saturating_add(params))
    }

    /// Parses the pool.
    ///
    /// # Safety
    /// The pointers hold the elements that the struct describes, in the memory of the device of the calls to come.
    unsafe fn parse<'a>(&self) -> Result<DevicePool<'a>> {
        let (op, len) = (self.op.parse()?, self.len()?);
        let theta = floats("theta", self.theta, len)?;
        // SAFETY: the caller's promise.
        let pool = DevicePool::new(
            op,
            unsafe { DeviceSlice::from_raw(theta as u64, len) },
            self.slots,
            self.stride,
        )?;
        if self.scales.is_null() {
            return Ok(pool);
        }
        let scales = floats("scales", self.scales, self.slots)?;
        // SAFETY: the caller's promise.
        pool.with_scales(unsafe { DeviceSlice::from_raw(scales as u64, self.slots) })
    }

    /// Spans of what every call reads of the pool.
    fn spans(&self) -> Result<[Span; 2]> {
        let scales = if self.scales.is_null() { 0 } else { self.slots };
        Ok([Span::floats("theta", self.theta, self.len()?), Span::floats("scales", self.scales, scales)])
    }
}

/// Writes the lengths of the buffers of calls over at most `rows` rows of a pool.
///
/// # Safety
/// As for [`run`].
pub(crate) unsafe fn sizes(
    device: KronDevice,
    pool: &KronPool,
    rows: usize,
    sizes: &mut KronManySizes,
) -> Result<()> {
    struct Sizes<'a>(&'a KronPool, usize, &'a mut KronManySizes);
    impl DeviceJob for Sizes<'_> {
        fn on<L: Launcher>(self, on: &Cuda<L>) -> Result<()> {
            let Sizes(pool, rows, sizes) = self;
            // SAFETY: the promise of the caller of `sizes`.
            let pool = unsafe { pool.parse()? };
            let len = |pass| on.segments_workspace_len(&pool, pass, rows);
            let t = extent::<f32>("t", rows, pool.op().shape.t_row())?;
            *sizes =
                KronManySizes { t, forward: len(Pass::Forward), backward: len(Pass::Backward { dx: true }) };
            Ok(())
        }
    }
    on_device(device, Sizes(pool, rows, sizes))
}

/// A call over the rows of a pool.
pub(crate) trait PoolCall: Copy {
    fn dtype(&self) -> u32;
    /// # Safety
    /// The struct's pointers hold the elements that it describes, of type E, in the device's memory.
    unsafe fn run<L: Launcher, E: Element>(&self, on: &Cuda<L>, pool: &KronPool) -> Result<()>;
}

/// Runs a call on a device.
///
/// # Safety
/// The structs' pointers hold the elements that they describe, in the device's memory.
pub(crate) unsafe fn run<C: PoolCall>(device: KronDevice, pool: KronPool, call: C) -> Result<()> {
    struct Prepared<C>(KronPool, C);
    impl<C: PoolCall> DeviceJob for Prepared<C> {
        fn on<L: Launcher>(self, on: &Cuda<L>) -> Result<()> {
            let Self(pool, call) = self;
            // SAFETY: the promise of the caller of `run`; the arm is the struct's dtype.
            unsafe { with_dtype!(call.dtype(), E => call.run::<L, E>(on, &pool)) }
        }
    }
    on_device(device, Prepared(pool, call))
}

/// The table and the status of a call, checked for their memory.
fn table_and_status(
    table: *const i32,
    status: *const u32,
    rows: usize,
) -> Result<(*const i32, *const u32, [Span; 2])> {
    let table = checked("table", table, extent::<i32>("table", 1, rows)?)?;
    let status = checked("status", status, 2)?;
    let spans = [Span::floats("table", table.cast(), rows), Span::floats("status", status.cast(), 2)];
    Ok((table, status, spans))
}

impl PoolCall for KronForwardPool {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<L: Launcher, E: Element>(&self, on: &Cuda<L>, pool: &KronPool) -> Result<()> {
        // SAFETY: the caller's promise.
        let parsed = unsafe { pool.parse()? };
        let (n, s) = (self.rows, parsed.op().shape);
        let x = matrix("x", self.x.cast::<E>(), n, s.d_in(), self.x_stride)?;
        let y = matrix("y", self.y.cast::<E>().cast_const(), n, s.d_out(), self.y_stride)?;
        let t_len = extent::<f32>("t", n, s.t_row())?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let (table, status, [of_table, of_status]) = table_and_status(self.table, self.status, n)?;
        let accum = accum(self.accumulate)?;
        let written = [
            Span::rows("y", &y),
            Span::floats("t", t, t_len),
            Span::floats("workspace", workspace, self.workspace_len),
            of_status,
        ];
        let [theta, scales] = pool.spans()?;
        overlap::check_many(&written, &[Span::rows("x", &x), of_table, theta, scales])?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let call = unsafe {
            ForwardSegments {
                x: Cuda::<L>::rows(x),
                table: DeviceSlice::from_raw(table as u64, n),
                y: Cuda::<L>::rows_mut(y.written()),
                accum,
                t: Cuda::<L>::floats_mut(t.cast_mut(), t_len),
                workspace: Cuda::<L>::floats_mut(workspace.cast_mut(), self.workspace_len),
                status: DeviceSliceMut::from_raw(status as u64, 2),
                dropout: key(self.key),
            }
        };
        on.forward_segments(&parsed, call)
    }
}

impl PoolCall for KronBackwardPool {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<L: Launcher, E: Element>(&self, on: &Cuda<L>, pool: &KronPool) -> Result<()> {
        // SAFETY: the caller's promise.
        let parsed = unsafe { pool.parse()? };
        let (n, s, len) = (self.rows, parsed.op().shape, pool.len()?);
        let x = matrix("x", self.x.cast::<E>(), n, s.d_in(), self.x_stride)?;
        let dy = matrix("dy", self.dy.cast::<E>(), n, s.d_out(), self.dy_stride)?;
        let dx = match self.dx.is_null() {
            true => None,
            false => Some(matrix("dx", self.dx.cast::<E>().cast_const(), n, s.d_in(), self.dx_stride)?),
        };
        let t_len = extent::<f32>("t", n, s.t_row())?;
        let t = floats("t", self.t, t_len)?;
        let grads = floats("grads", self.grads, len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let (table, status, [of_table, of_status]) = table_and_status(self.table, self.status, n)?;
        let accum = accum(self.accumulate)?;
        let mut written = vec![
            Span::floats("grads", grads, len),
            Span::floats("workspace", workspace, self.workspace_len),
            of_status,
        ];
        written.extend(dx.map(|dx| Span::rows("dx", &dx)));
        let [theta, scales] = pool.spans()?;
        let read = [
            Span::rows("x", &x),
            Span::rows("dy", &dy),
            Span::floats("t", t, t_len),
            of_table,
            theta,
            scales,
        ];
        overlap::check_many(&written, &read)?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let call = unsafe {
            BackwardSegments {
                x: Cuda::<L>::rows(x),
                table: DeviceSlice::from_raw(table as u64, n),
                t: Cuda::<L>::floats(t, t_len),
                dy: Cuda::<L>::rows(dy),
                dx: dx.map(|dx| (Cuda::<L>::rows_mut(dx.written()), accum)),
                grads: Cuda::<L>::floats_mut(grads.cast_mut(), len),
                workspace: Cuda::<L>::floats_mut(workspace.cast_mut(), self.workspace_len),
                status: DeviceSliceMut::from_raw(status as u64, 2),
                dropout: key(self.key),
            }
        };
        on.backward_segments(&parsed, call)
    }
}
