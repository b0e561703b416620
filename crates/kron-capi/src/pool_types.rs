//! The structs of calls over the rows of a pool on a device.

use std::ffi::c_void;

use crate::types::{KronKey, KronOp};

/// Adapters of one shape in a device's memory; adapters of other shapes or ranks are another pool.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronPool {
    /// Shape and dropout of all adapters, and their scale where scales is null.
    pub op: KronOp,
    /// [A | B | C] of each slot, on the device.
    pub theta: *const f32,
    /// Number of adapters, 1 to 2^30.
    pub slots: usize,
    /// Elements from one slot's theta, or gradient, to the next.
    pub stride: usize,
    /// Scale of each slot, on the device; null for the op's.
    pub scales: *const f32,
}

/// Arguments of kron_forward_pool.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronForwardPool {
    /// Type of X and Y: KRON_F32, KRON_F16 or KRON_BF16.
    pub dtype: u32,
    /// 0 overwrites the rows of Y that have a slot, 1 adds to them.
    pub accumulate: u32,
    /// Rows of X and Y, and elements of the table.
    pub rows: usize,
    /// X, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// Y, rows x d_out; a row without a slot keeps its bits.
    pub y: *mut c_void,
    /// Elements from one row of Y to the next.
    pub y_stride: usize,
    /// Slot of each row, in any order, or -1; on the device, read when the kernels run.
    pub table: *const i32,
    /// T, written, in the order of X's rows; keep it for kron_backward_pool.
    pub t: *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
    /// Two numbers, written if there is a row: the rows whose number is neither -1 nor a slot, which count as -1, and
    /// the first of these rows, or 2^32 - 1.
    pub status: *mut u32,
    /// Dropout's key, of a mask in which a row has its number in X; null in evaluation.
    pub key: *const KronKey,
}

/// Arguments of kron_backward_pool.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronBackwardPool {
    /// Type of X, dY and dX.
    pub dtype: u32,
    /// 0 overwrites the rows of dX that have a slot, 1 adds to them.
    pub accumulate: u32,
    /// Rows of X, dY and dX, and elements of the table.
    pub rows: usize,
    /// X of the forward call, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// dY, rows x d_out; a row without a slot is not read.
    pub dy: *const c_void,
    /// Elements from one row of dY to the next.
    pub dy_stride: usize,
    /// dX, rows x d_in; a row without a slot keeps its bits. Null skips it.
    pub dx: *mut c_void,
    /// Elements from one row of dX to the next.
    pub dx_stride: usize,
    /// Table of the forward call.
    pub table: *const i32,
    /// T of the forward call.
    pub t: *const f32,
    /// Gradient of each slot's theta, as far apart as these, always added to; a slot without a row is not read.
    pub grads: *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
    /// As in kron_forward_pool.
    pub status: *mut u32,
    /// The key of the forward call.
    pub key: *const KronKey,
}
