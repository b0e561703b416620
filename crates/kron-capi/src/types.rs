//! The structs of `kron.h`.

use std::ffi::c_void;

use kron_core::{Dropout, DropoutKey, Inner, KronShape, LayerDims, Outer, Result, Scale, Split};

/// Number of this interface. A program runs with every library whose kron_abi() returns the number that
/// the program was compiled with. It changes with each change to a struct, constant or function of this
/// header; an addition leaves it.
pub const KRON_ABI: u32 = 1;

/// Activations in IEEE 754 binary32.
pub const KRON_F32: u32 = 0;
/// Activations in IEEE 754 binary16.
pub const KRON_F16: u32 = 1;
/// Activations in bfloat16.
pub const KRON_BF16: u32 = 2;

/// The device number of the kernels' emulation on host memory, for tests: no release build has it.
pub const KRON_EMULATED: i32 = -1;

/// Task of a call on the host: computes part `i`.
pub type KronTask = extern "C" fn(data: *mut c_void, i: usize);

/// Runs task(data, i) once for each i below count, on any threads, and returns when all have returned. An i that it
/// leaves out is computed by the calling thread.
pub type KronRunner = Option<unsafe extern "C" fn(count: usize, task: KronTask, data: *mut c_void)>;

/// The device of a call; a null pointer is the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronDevice {
    /// The CUDA device's number.
    pub device: i32,
    /// A CUstream or cudaStream_t of that device's primary context; null is the default stream.
    pub stream: *mut c_void,
}

/// The adapter: dW = s·A ⊗ (B·C).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronOp {
    /// Output width of the layer.
    pub d_out: usize,
    /// Input width of the layer.
    pub d_in: usize,
    /// Rows of A; 0, and a_in 0, is LoRA, whose A is the number 1 and not in theta.
    pub a_out: usize,
    /// Columns of A.
    pub a_in: usize,
    /// Rank of B·C; 0 is one full matrix in their place.
    pub rank: usize,
    /// s, alpha / rank.
    pub scale: f32,
    /// Probability of dropping an element of X in a call with a key.
    pub dropout: f32,
}

impl KronOp {
    /// Checks the op; no later step has to.
    pub(crate) fn parse(&self) -> Result<kron_core::KronOp> {
        let inner = match self.rank {
            0 => Inner::Full,
            rank => Inner::LowRank(rank),
        };
        let (outer, a_out, a_in) = match (self.a_out, self.a_in) {
            (0, 0) => (Outer::One, 1, 1),
            (a_out, a_in) => (Outer::Trained, a_out, a_in),
        };
        let shape = KronShape::new(
            LayerDims { d_out: self.d_out, d_in: self.d_in },
            Split { a_out, a_in },
            outer,
            inner,
        )?;
        Ok(kron_core::KronOp::new(shape, Scale::new(self.scale)?).with_dropout(Dropout::new(self.dropout)?))
    }
}

/// Key of a dropout mask: the same key gives the same mask in forward and backward.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronKey {
    /// The run's seed.
    pub seed: u64,
    /// Distinguishes layers and steps under one seed.
    pub offset: u64,
}

impl From<KronKey> for DropoutKey {
    fn from(KronKey { seed, offset }: KronKey) -> Self {
        DropoutKey { seed, offset }
    }
}

/// Lengths in float32 elements, which suffice for every dtype and for fewer rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KronSizes {
    /// theta and its gradient: [A | B | C].
    pub theta: usize,
    /// T.
    pub t: usize,
    /// Workspace of kron_forward.
    pub forward: usize,
    /// Workspace of kron_backward.
    pub backward: usize,
    /// Workspace of kron_merge, for every band of W's rows.
    pub merge: usize,
}

/// Arguments of kron_forward.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronForward {
    /// Type of X and Y: KRON_F32, KRON_F16 or KRON_BF16.
    pub dtype: u32,
    /// 0 overwrites Y, 1 adds to it.
    pub accumulate: u32,
    /// Rows of X and Y.
    pub rows: usize,
    /// X, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// Y, rows x d_out.
    pub y: *mut c_void,
    /// Elements from one row of Y to the next.
    pub y_stride: usize,
    /// [A | B | C].
    pub theta: *const f32,
    /// T, written; keep it for kron_backward.
    pub t: *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
    /// Dropout's key; null in evaluation.
    pub key: *const KronKey,
}

/// Arguments of kron_backward.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronBackward {
    /// Type of X, dY and dX.
    pub dtype: u32,
    /// 0 overwrites dX, 1 adds to it.
    pub accumulate: u32,
    /// Rows of X, dY and dX.
    pub rows: usize,
    /// X of the forward call, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// dY, rows x d_out.
    pub dy: *const c_void,
    /// Elements from one row of dY to the next.
    pub dy_stride: usize,
    /// dX, rows x d_in; null skips it.
    pub dx: *mut c_void,
    /// Elements from one row of dX to the next.
    pub dx_stride: usize,
    /// theta of the forward call.
    pub theta: *const f32,
    /// T of the forward call.
    pub t: *const f32,
    /// Gradient of theta, always added to.
    pub grad: *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
    /// The key of the forward call.
    pub key: *const KronKey,
}

/// Arguments of kron_merge.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronMerge {
    /// Type of W.
    pub dtype: u32,
    /// 0 overwrites the rows with dW's, 1 adds dW's to them.
    pub accumulate: u32,
    /// Rows in this call.
    pub rows: usize,
    /// The row of the layer's weight that `w` starts with.
    pub first_row: usize,
    /// W's rows, rows x d_in.
    pub w: *mut c_void,
    /// Elements from one row of W to the next.
    pub w_stride: usize,
    /// [A | B | C].
    pub theta: *const f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
}

/// An adapter of a call over segments.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronAdapter {
    /// Shape, scale and dropout; d_out and d_in are those of all adapters of the call, the rest may differ.
    pub op: KronOp,
    /// [A | B | C].
    pub theta: *const f32,
}

/// An adapter of a call over a group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronTerm {
    /// Shape, scale and dropout; d_in is that of all terms, and d_out that of all terms of one output.
    pub op: KronOp,
    /// [A | B | C].
    pub theta: *const f32,
    /// Number of the Y that it adds to.
    pub output: usize,
    /// Dropout's key; null in evaluation.
    pub key: *const KronKey,
}

/// Lengths in float32 elements of a call over segments or over a group, which suffice for every dtype and for fewer
/// rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KronManySizes {
    /// T.
    pub t: usize,
    /// Workspace of the forward call.
    pub forward: usize,
    /// Workspace of the backward call.
    pub backward: usize,
}

/// Arguments of kron_forward_segments.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronForwardSegments {
    /// Type of X and Y: KRON_F32, KRON_F16 or KRON_BF16.
    pub dtype: u32,
    /// 0 overwrites the rows of Y that have an adapter, 1 adds to them.
    pub accumulate: u32,
    /// Rows of X and Y, and elements of the table.
    pub rows: usize,
    /// X, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// Y, rows x d_out; a row without an adapter keeps its bits.
    pub y: *mut c_void,
    /// Elements from one row of Y to the next.
    pub y_stride: usize,
    /// Number of each row's adapter, in any order; -1 for a row without one.
    pub table: *const i32,
    /// T, written; keep it for kron_backward_segments.
    pub t: *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
    /// Dropout's key, of a mask in which a row has its number in X; null in evaluation.
    pub key: *const KronKey,
}

/// Arguments of kron_backward_segments.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronBackwardSegments {
    /// Type of X, dY and dX.
    pub dtype: u32,
    /// 0 overwrites the rows of dX that have an adapter, 1 adds to them.
    pub accumulate: u32,
    /// Rows of X, dY and dX, and elements of the table.
    pub rows: usize,
    /// X of the forward call, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// dY, rows x d_out; a row without an adapter is not read.
    pub dy: *const c_void,
    /// Elements from one row of dY to the next.
    pub dy_stride: usize,
    /// dX, rows x d_in; a row without an adapter keeps its bits. Null skips it.
    pub dx: *mut c_void,
    /// Elements from one row of dX to the next.
    pub dx_stride: usize,
    /// Table of the forward call.
    pub table: *const i32,
    /// T of the forward call.
    pub t: *const f32,
    /// Gradient of each adapter's theta, always added to; null for an adapter without a row is allowed.
    pub grads: *const *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
    /// The key of the forward call.
    pub key: *const KronKey,
}

/// One Y of kron_forward_group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronGroupY {
    /// Y, rows x the output's d_out.
    pub y: *mut c_void,
    /// Elements from one row of Y to the next.
    pub y_stride: usize,
    /// 0 overwrites Y, 1 adds to it.
    pub accumulate: u32,
}

/// Arguments of kron_forward_group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronForwardGroup {
    /// Type of X and of each Y.
    pub dtype: u32,
    /// Rows of X and of each Y.
    pub rows: usize,
    /// X, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// Y of each output, in the order of their numbers.
    pub ys: *const KronGroupY,
    /// Number of outputs, one more than the largest of a term.
    pub outputs: usize,
    /// T, written; keep it for kron_backward_group.
    pub t: *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
}

/// One dY of kron_backward_group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronGroupDy {
    /// dY, rows x the output's d_out.
    pub dy: *const c_void,
    /// Elements from one row of dY to the next.
    pub dy_stride: usize,
}

/// Arguments of kron_backward_group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KronBackwardGroup {
    /// Type of X, of each dY and of dX.
    pub dtype: u32,
    /// 0 overwrites dX, 1 adds to it.
    pub accumulate: u32,
    /// Rows of X, of each dY and of dX.
    pub rows: usize,
    /// X of the forward call, rows x d_in.
    pub x: *const c_void,
    /// Elements from one row of X to the next.
    pub x_stride: usize,
    /// dY of each output, in the order of their numbers.
    pub dys: *const KronGroupDy,
    /// Number of outputs.
    pub outputs: usize,
    /// dX, rows x d_in, which gets the sum over all terms; null skips it.
    pub dx: *mut c_void,
    /// Elements from one row of dX to the next.
    pub dx_stride: usize,
    /// T of the forward call.
    pub t: *const f32,
    /// Gradient of each term's theta, always added to.
    pub grads: *const *mut f32,
    /// Scratch.
    pub workspace: *mut f32,
    /// Elements of scratch.
    pub workspace_len: usize,
}
