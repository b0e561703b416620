//! Calls over segments: rows of many adapters on the host.

use kron_core::{
    Accum, AdapterPool, BackwardSegments, Cpu, Element, ForwardSegments, Pass, PoolEntry, Result,
};

use crate::call::{accum, checked, extent, floats, key, matrix};
use crate::host::HostCall;
use crate::overlap::{self, Span};
use crate::pointers::FromPointers;
use crate::refuse;
use crate::types::{KronAdapter, KronBackwardSegments, KronForwardSegments, KronManySizes};

/// Parses the adapters of a pool, and gives the pool to `f`.
///
/// # Safety
/// `adapters` points to `count` structs, whose pointers hold the elements of theta.
pub(crate) unsafe fn with_pool<T>(
    adapters: *const KronAdapter,
    count: usize,
    f: impl FnOnce(&AdapterPool<'_>) -> Result<T>,
) -> Result<T> {
    let adapters = checked("adapters", adapters, extent::<KronAdapter>("adapters", count, 1)?)?;
    let mut entries = Vec::new();
    if entries.try_reserve_exact(count).is_err() {
        return Err(refuse("adapters", format!("{count} elements"), "memory has room for a copy of them"));
    }
    for i in 0..count {
        // SAFETY: the caller's promise; the pointer is aligned, and i is below its count.
        let KronAdapter { op, theta } = unsafe { *adapters.add(i) };
        let op = op.parse()?;
        let theta = floats("theta", theta, op.shape.params())?;
        // SAFETY: the pointer was checked for null and alignment, and the caller promises its contents.
        entries.push(PoolEntry { op, theta: unsafe { Cpu::floats(theta, op.shape.params()) } });
    }
    f(&AdapterPool::new(&entries)?)
}

/// Returns the lengths of the buffers of a call over `rows` rows.
pub(crate) fn sizes(cpu: &Cpu, pool: &AdapterPool<'_>, rows: usize) -> Result<KronManySizes> {
    let len = |pass| cpu.segments_workspace_len(pool, pass, rows);
    let t = extent::<f32>("t", rows, pool.t_len(1))?;
    Ok(KronManySizes { t, forward: len(Pass::Forward), backward: len(Pass::Backward { dx: true }) })
}

/// Returns the spans of all thetas.
fn thetas(pool: &AdapterPool<'_>) -> impl Iterator<Item = Span> {
    pool.adapters().iter().map(|entry| Span::floats("theta", entry.theta.as_ptr(), entry.theta.len()))
}

/// Checks a table for its memory alone; what it says is checked with the call.
fn table(table: *const i32, rows: usize) -> Result<*const i32> {
    checked("table", table, extent::<i32>("table", 1, rows)?)
}

/// Returns the span of a table.
fn span_of(table: *const i32, rows: usize) -> Span {
    Span::floats("table", table.cast(), rows)
}

impl HostCall for KronForwardSegments {
    type Over<'a> = AdapterPool<'a>;

    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<E: Element>(&self, cpu: &Cpu, pool: &AdapterPool<'_>) -> Result<()> {
        let (n, layer) = (self.rows, pool.layer());
        let x = matrix("x", self.x.cast::<E>(), n, layer.d_in, self.x_stride)?;
        let y = matrix("y", self.y.cast::<E>().cast_const(), n, layer.d_out, self.y_stride)?;
        let t_len = extent::<f32>("t", n, pool.t_len(1))?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let table = table(self.table, n)?;
        let accum = accum(self.accumulate)?;
        let mut read = vec![Span::rows("x", &x), span_of(table, n)];
        read.extend(thetas(pool));
        let written = [
            Span::rows("y", &y),
            Span::floats("t", t, t_len),
            Span::floats("workspace", workspace, self.workspace_len),
        ];
        overlap::check_many(&written, &read)?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let call = unsafe {
            ForwardSegments {
                x: Cpu::rows(x),
                table: std::slice::from_raw_parts(table, n),
                y: Cpu::rows_mut(y.written()),
                accum,
                t: Cpu::floats_mut(t.cast_mut(), t_len),
                workspace: Cpu::floats_mut(workspace.cast_mut(), self.workspace_len),
                dropout: key(self.key),
            }
        };
        cpu.forward_segments(pool, call)
    }
}

impl HostCall for KronBackwardSegments {
    type Over<'a> = AdapterPool<'a>;

    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<E: Element>(&self, cpu: &Cpu, pool: &AdapterPool<'_>) -> Result<()> {
        let (n, layer, count) = (self.rows, pool.layer(), pool.adapters().len());
        let x = matrix("x", self.x.cast::<E>(), n, layer.d_in, self.x_stride)?;
        let dy = matrix("dy", self.dy.cast::<E>(), n, layer.d_out, self.dy_stride)?;
        let dx = match self.dx.is_null() {
            true => None,
            false => Some(matrix("dx", self.dx.cast::<E>().cast_const(), n, layer.d_in, self.dx_stride)?),
        };
        let t_len = extent::<f32>("t", n, pool.t_len(1))?;
        let t = floats("t", self.t, t_len)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let table = table(self.table, n)?;
        let accum: Accum = accum(self.accumulate)?;
        let pointers = checked("grads", self.grads, extent::<*mut f32>("grads", 1, count)?)?;
        let mut written = vec![Span::floats("workspace", workspace, self.workspace_len)];
        written.extend(dx.map(|dx| Span::rows("dx", &dx)));
        let mut grads = Vec::with_capacity(count);
        for (i, entry) in pool.adapters().iter().enumerate() {
            // SAFETY: the caller promises a pointer for each adapter; `grads` is aligned and not null.
            let pointer = unsafe { *pointers.add(i) };
            // Whether an adapter has rows, the call checks.
            let len = if pointer.is_null() { 0 } else { entry.theta.len() };
            let grad = floats("grad", pointer, len)?;
            written.push(Span::floats("grad", grad, len));
            grads.push((grad, len));
        }
        let mut read =
            vec![Span::rows("x", &x), Span::rows("dy", &dy), Span::floats("t", t, t_len), span_of(table, n)];
        read.extend(thetas(pool));
        overlap::check_many(&written, &read)?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let mut grads: Vec<&mut [f32]> =
            grads.into_iter().map(|(grad, len)| unsafe { Cpu::floats_mut(grad.cast_mut(), len) }).collect();
        // SAFETY: as above.
        let call = unsafe {
            BackwardSegments {
                x: Cpu::rows(x),
                table: std::slice::from_raw_parts(table, n),
                t: Cpu::floats(t, t_len),
                dy: Cpu::rows(dy),
                dx: dx.map(|dx| (Cpu::rows_mut(dx.written()), accum)),
                grads: &mut grads,
                workspace: Cpu::floats_mut(workspace.cast_mut(), self.workspace_len),
                dropout: key(self.key),
            }
        };
        cpu.backward_segments(pool, call)
    }
}
