//! [`Backend`]: forward, backward and merge on one kind of device, and their arguments.
//!
//! The caller brings every buffer; a backend allocates nothing.

use crate::theta::ThetaBuffer;
use crate::{Accum, DropoutKey, Element, KronOp, Result};

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
///
/// [`Backend::forward`] has an example.
#[derive(Debug)]
pub struct Forward<'a, B: Backend, E: Element> {
    /// θ, \[A | B | C\].
    pub theta: B::Floats<'a>,
    /// X, n × d_in.
    pub x: B::Rows<'a, E>,
    /// Y, n × d_out.
    pub y: B::RowsMut<'a, E>,
    /// Treatment of Y's old contents.
    pub accum: Accum,
    /// T, at least [`KronOp::t_len`] elements; written. Keep it for backward.
    pub t: B::FloatsMut<'a>,
    /// Scratch, at least [`Backend::workspace_len`] elements; its contents are lost.
    pub workspace: B::FloatsMut<'a>,
    /// Key of the dropout mask; `None` in evaluation.
    pub dropout: Option<DropoutKey>,
}

/// Arguments of [`Backend::backward`], which has an example.
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
    /// dX, n × d_in, and the treatment of its old contents; `None` skips dX.
    pub dx: Option<(B::RowsMut<'a, E>, Accum)>,
    /// \[dA | dB | dC\], always added to.
    pub grad: B::FloatsMut<'a>,
    /// Scratch, at least [`Backend::workspace_len`] elements; its contents are lost.
    pub workspace: B::FloatsMut<'a>,
    /// Key of the forward call.
    pub dropout: Option<DropoutKey>,
}

/// Arguments of [`Backend::merge`]: W += s·A ⊗ (B·C).
///
/// [`Backend::merge`] has an example.
#[derive(Debug)]
pub struct Merge<'a, B: Backend, E: Element> {
    /// θ, \[A | B | C\].
    pub theta: B::Floats<'a>,
    /// W, d_out × d_in, or a band of its rows.
    pub w: B::RowsMut<'a, E>,
    /// Row of the layer's weight with which `w` starts.
    pub first_row: usize,
    /// [`Accum::Add`] merges; [`Accum::Replace`] writes rows of ΔW itself.
    pub accum: Accum,
    /// Scratch, at least [`Backend::workspace_len`] elements; its contents are lost.
    pub workspace: B::FloatsMut<'a>,
}

/// Forward, backward and merge on one kind of device.
///
/// Every sum is float32. Gradients are reduced in an order that depends only on the
/// shape and the number of rows: the same input gives the same bits for any number of
/// threads.
///
/// [`Cpu`](crate::Cpu) implements it here; `kron-kernels` implements it for CUDA devices.
pub trait Backend: Sized {
    /// A matrix of activations that is read.
    type Rows<'a, E: Element>: std::fmt::Debug;
    /// A matrix of activations that is written.
    type RowsMut<'a, E: Element>: std::fmt::Debug;
    /// Float32 elements that are read.
    type Floats<'a>: ThetaBuffer + std::fmt::Debug;
    /// Float32 elements that are written.
    type FloatsMut<'a>: std::fmt::Debug;

    /// Returns the float32 elements of scratch that every call over at most `rows` rows can run with.
    ///
    /// More rows never have less, so one workspace serves a training run whose last batch is short,
    /// and a merge by bands. Returns 0 for a shape that the backend cannot run; the call itself then
    /// fails with the reason.
    ///
    /// ```
    /// use kron_core::{Backend, Cpu, KronOp, KronShape, LayerDims, Pass, Scale};
    ///
    /// let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 70 }, 4)?;
    /// let op = KronOp::new(shape, Scale::new(0.5)?);
    /// // One workspace serves both calls of a training step.
    /// let passes = [Pass::Forward, Pass::Backward { dx: true }];
    /// let lens = passes.map(|pass| Cpu::new().workspace_len(&op, pass, 16));
    /// let workspace = vec![0.0_f32; lens[0].max(lens[1])];
    /// # assert!(!workspace.is_empty());
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    fn workspace_len(&self, op: &KronOp, pass: Pass, rows: usize) -> usize;

    /// Writes or adds the adapter's output s·A·(X·Cᵀ)·Bᵀ to Y, and writes T.
    ///
    /// ```
    /// use kron_core::{
    ///     Accum, Backend, Cpu, Forward, KronOp, KronShape, LayerDims, Pass, Scale, Split, Theta, reference,
    /// };
    /// use ndarray::Array2;
    ///
    /// let layer = LayerDims { d_out: 48, d_in: 70 };
    /// let shape = KronShape::kron(layer, Split { a_out: 3, a_in: 7 }, 4)?;
    /// let (op, theta) = (KronOp::new(shape, Scale::new(0.5)?), Theta::random(shape, 1));
    ///
    /// let (cpu, rows) = (Cpu::new(), 2);
    /// let x = Array2::from_shape_fn((rows, 70), |(n, k)| (n + k) as f32 / 70.0);
    /// let mut y = Array2::zeros((rows, 48));
    /// let mut t = vec![0.0; op.t_len(rows)];
    /// let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Forward, rows)];
    /// cpu.forward(&op, Forward {
    ///     theta: theta.as_slice(), x: x.view(), y: y.view_mut(), accum: Accum::Replace,
    ///     t: &mut t, workspace: &mut workspace, dropout: None,
    /// })?;
    ///
    /// let want = reference::forward(&op, &theta, x.mapv(f64::from).view());
    /// assert!(y.iter().zip(&want).all(|(y, want)| (f64::from(*y) - want).abs() < 1e-5));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the shape; nothing is written then.
    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()>;

    /// Adds θ's gradient to `grad`, and writes or adds dX.
    ///
    /// ```
    /// use kron_core::{
    ///     Accum, Backend, Backward, Cpu, Forward, KronOp, KronShape, LayerDims, Pass, Scale, Theta, reference,
    /// };
    /// use ndarray::Array2;
    ///
    /// let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 70 }, 4)?;
    /// let (op, theta) = (KronOp::new(shape, Scale::new(0.5)?), Theta::random(shape, 1));
    /// let (cpu, rows) = (Cpu::new(), 2);
    /// let x = Array2::from_shape_fn((rows, 70), |(n, k)| (n + k) as f32 / 70.0);
    /// let mut y = Array2::zeros((rows, 48));
    /// let mut t = vec![0.0; op.t_len(rows)];
    /// let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Forward, rows)];
    /// cpu.forward(&op, Forward {
    ///     theta: theta.as_slice(), x: x.view(), y: y.view_mut(), accum: Accum::Replace,
    ///     t: &mut t, workspace: &mut workspace, dropout: None,
    /// })?;
    ///
    /// // The gradient of ½·|Y|² in Y is Y.
    /// let (mut dx, mut grad) = (Array2::zeros(x.dim()), vec![0.0; shape.params()]);
    /// workspace.resize(cpu.workspace_len(&op, Pass::Backward { dx: true }, rows), 0.0);
    /// cpu.backward(&op, Backward {
    ///     theta: theta.as_slice(), x: x.view(), t: &t, dy: y.view(),
    ///     dx: Some((dx.view_mut(), Accum::Replace)), grad: &mut grad,
    ///     workspace: &mut workspace, dropout: None,
    /// })?;
    ///
    /// let (x, y) = (x.mapv(f64::from), y.mapv(f64::from));
    /// let want = reference::backward(&op, &theta, x.view(), y.view());
    /// assert!(grad.iter().zip(&want.theta).all(|(g, want)| (f64::from(*g) - want).abs() < 1e-4));
    /// assert!(dx.iter().zip(&want.dx).all(|(d, want)| (f64::from(*d) - want).abs() < 1e-4));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the shape; nothing is written then.
    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()>;

    /// Adds ΔW to rows of a weight, block by block: ΔW is never whole in memory.
    ///
    /// ```
    /// use kron_core::{Accum, Backend, Cpu, KronOp, KronShape, LayerDims, Merge, Pass, Scale, Split, Theta, reference};
    /// use ndarray::Array2;
    ///
    /// let layer = LayerDims { d_out: 48, d_in: 70 };
    /// let shape = KronShape::kron(layer, Split { a_out: 3, a_in: 7 }, 4)?;
    /// let (op, theta) = (KronOp::new(shape, Scale::new(0.5)?), Theta::random(shape, 1));
    /// let cpu = Cpu::new();
    /// let mut w = Array2::from_elem((48, 70), 1.0_f32);
    /// let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Merge, 48)];
    /// cpu.merge(&op, Merge {
    ///     theta: theta.as_slice(), w: w.view_mut(), first_row: 0, accum: Accum::Add,
    ///     workspace: &mut workspace,
    /// })?;
    ///
    /// let want = 1.0 + reference::delta_weight(&op, &theta);
    /// assert!(w.iter().zip(&want).all(|(w, want)| (f64::from(*w) - want).abs() < 1e-5));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the shape; nothing is written then.
    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()>;
}
