//! Where an op runs. The caller brings every buffer; nothing here allocates.

use crate::{DropoutKey, Element, KronOp, Result};

mod cpu;
pub use crate::simd::{Isa, probe};
pub use cpu::Cpu;

/// What happens to what is already in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accum {
    /// The old contents are never read.
    Replace,
    /// The result is added, with one rounding.
    Add,
}

/// One of the three calls of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// [`Backend::forward`].
    Forward,
    /// [`Backend::backward`].
    Backward {
        /// Compute dX as well; a workspace for `true` is enough for `false`.
        dx: bool,
    },
    /// [`Backend::merge`].
    Merge,
}

/// Arguments of [`Backend::forward`]: T = X·Cᵀ, U = A·T, Y (+)= s·U·Bᵀ.
#[derive(Debug)]
pub struct Forward<'a, B: Backend, E: Element> {
    /// θ, \[A | B | C\].
    pub theta: B::Floats<'a>,
    /// X, n × d_in.
    pub x: B::Rows<'a, E>,
    /// Y, n × d_out.
    pub y: B::RowsMut<'a, E>,
    /// Whether Y is overwritten or added to.
    pub accum: Accum,
    /// T, at least [`KronOp::t_len`] numbers; written. Keep it for backward.
    pub t: B::FloatsMut<'a>,
    /// Scratch, at least [`Backend::workspace_len`] numbers; contents are lost.
    pub workspace: B::FloatsMut<'a>,
    /// Dropout's key; `None` in evaluation.
    pub dropout: Option<DropoutKey>,
}

/// Arguments of [`Backend::backward`].
#[derive(Debug)]
pub struct Backward<'a, B: Backend, E: Element> {
    /// θ of the forward call.
    pub theta: B::Floats<'a>,
    /// X of the forward call, n × d_in.
    pub x: B::Rows<'a, E>,
    /// T of the forward call.
    pub t: B::Floats<'a>,
    /// dY, n × d_out.
    pub dy: B::Rows<'a, E>,
    /// dX, n × d_in, and whether it is overwritten or added to; `None` skips it.
    pub dx: Option<(B::RowsMut<'a, E>, Accum)>,
    /// \[dA | dB | dC\], always added to.
    pub grad: B::FloatsMut<'a>,
    /// Scratch, at least [`Backend::workspace_len`] numbers; contents are lost.
    pub workspace: B::FloatsMut<'a>,
    /// The key of the forward call.
    pub dropout: Option<DropoutKey>,
}

/// Arguments of [`Backend::merge`]: W += s·A ⊗ (B·C).
#[derive(Debug)]
pub struct Merge<'a, B: Backend, E: Element> {
    /// θ, \[A | B | C\].
    pub theta: B::Floats<'a>,
    /// W, d_out × d_in, or a band of its rows.
    pub w: B::RowsMut<'a, E>,
    /// The row of the layer's weight that `w` starts with.
    pub first_row: usize,
    /// [`Accum::Add`] merges; [`Accum::Replace`] writes rows of ΔW itself.
    pub accum: Accum,
    /// Scratch, at least [`Backend::workspace_len`] numbers; contents are lost.
    pub workspace: B::FloatsMut<'a>,
}

/// Forward, backward and merge on one kind of device.
///
/// Every sum is float32 and gradients are reduced in an order that depends
/// only on the shape and the number of rows: the same input gives the same
/// bits, whatever the number of threads.
///
/// [`Cpu`] implements it here; `kron-kernels` implements it for CUDA devices.
pub trait Backend: Sized {
    /// A matrix of activations.
    type Rows<'a, E: Element>: std::fmt::Debug;
    /// A matrix of activations to write.
    type RowsMut<'a, E: Element>: std::fmt::Debug;
    /// Float32 numbers.
    type Floats<'a>: std::fmt::Debug;
    /// Float32 numbers to write.
    type FloatsMut<'a>: std::fmt::Debug;

    /// Float32 numbers of scratch that a call over `rows` rows needs; 0 where
    /// the backend cannot serve the call at all, which it then says itself.
    fn workspace_len(&self, op: &KronOp, pass: Pass, rows: usize) -> usize;

    /// Adds the adapter's output to Y and writes T.
    ///
    /// # Errors
    /// A buffer that does not fit the shape; nothing is written then.
    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()>;

    /// Adds θ's gradient to `grad` and writes or adds dX.
    ///
    /// # Errors
    /// A buffer that does not fit the shape; nothing is written then.
    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()>;

    /// Folds ΔW into rows of a weight, block by block: ΔW is never whole in memory.
    ///
    /// # Errors
    /// A buffer that does not fit the shape; nothing is written then.
    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()>;
}
