//! The CPU backend. A call's rows are divided into partitions and those into blocks
//! that stay in L2; each block runs the three kernels of [`crate::simd`].

mod backward;
mod check;
mod device;
mod forward;
mod group;
mod grouped;
mod layout;
mod masked;
mod merge;
mod mix;
mod packed;
mod partition;
mod pool;
mod segments;
mod team;
mod term;
#[cfg(test)]
mod tests;

use ndarray::{ArrayView2, ArrayViewMut2};

pub use device::Cpu;
pub use group::{AdapterGroup, BackwardGroup, ForwardGroup, Group, GroupTerm};
pub use pool::{AdapterPool, BackwardSegments, ForwardSegments, PoolEntry};
pub use team::Team;

use partition::{Partitioned, RowPartition};

use crate::element::sealed::PerElement;
use crate::{Backend, Backward, Element, Forward, KronOp, Merge, Pass, Result};

impl Backend for Cpu {
    /// n × d with unit inner stride; the row stride is free.
    type Rows<'a, E: Element> = ArrayView2<'a, E>;
    /// n × d with unit inner stride; the row stride is free.
    type RowsMut<'a, E: Element> = ArrayViewMut2<'a, E>;
    type Floats<'a> = &'a [f32];
    type FloatsMut<'a> = &'a mut [f32];

    fn workspace_len(&self, op: &KronOp, pass: Pass, rows: usize) -> usize {
        let len = |partition| match pass {
            Pass::Forward => forward::layout(self.isa, op, partition).workspace_len(),
            Pass::Backward { dx } => backward::layout(self.isa, op, partition, dx).call.workspace_len(),
            Pass::Merge => merge::layout(self.isa, op, partition).workspace_len(),
        };
        RowPartition::bounds(Partitioned::of(pass), &op.shape, rows).map(len).max().unwrap_or(0)
    }

    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()> {
        E::run::<ForwardPass>((*self, *op, call))
    }

    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()> {
        E::run::<BackwardPass>((*self, *op, call))
    }

    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()> {
        E::run::<MergePass>((*self, *op, call))
    }
}

impl Cpu {
    /// Returns the float32 elements of scratch that every [`Cpu::forward_segments`] or [`Cpu::backward_segments`]
    /// over at most `rows` rows can run with, whatever the table; [`Pass::Merge`] is as [`Pass::Forward`].
    pub fn segments_workspace_len(&self, pool: &AdapterPool<'_>, pass: Pass, rows: usize) -> usize {
        segments::workspace_len(self.isa, pool, pass, rows)
    }

    /// Writes or adds to each row of Y the output of the row's adapter, and writes T.
    ///
    /// A segment, all rows of one adapter, gets the bits of [`Backend::forward`] over these rows, except
    /// that dropout's mask is that of the row's number in X.
    ///
    /// ```
    /// use kron_core::{
    ///     Accum, AdapterPool, Cpu, ForwardSegments, KronOp, KronShape, LayerDims, Pass, PoolEntry, Scale, Split,
    ///     Theta, reference,
    /// };
    /// use ndarray::{Array2, Axis};
    ///
    /// let layer = LayerDims { d_out: 48, d_in: 70 };
    /// let shape = KronShape::kron(layer, Split { a_out: 3, a_in: 7 }, 4)?;
    /// let op = KronOp::new(shape, Scale::new(0.5)?);
    /// let thetas = [1, 2, 3].map(|seed| Theta::random(shape, seed));
    /// let adapters = thetas.each_ref().map(|theta| PoolEntry { op, theta: theta.as_slice() });
    /// let pool = AdapterPool::new(&adapters)?;
    ///
    /// // Four tokens of three users; the third has no adapter.
    /// let (cpu, table) = (Cpu::new(), [2, 0, -1, 2]);
    /// let x = Array2::from_shape_fn((4, 70), |(n, k)| (n + k) as f32 / 70.0);
    /// let mut y = Array2::zeros((4, 48));
    /// let mut t = vec![0.0; pool.t_len(4)];
    /// let mut workspace = vec![0.0; cpu.segments_workspace_len(&pool, Pass::Forward, 4)];
    /// cpu.forward_segments(&pool, ForwardSegments {
    ///     x: x.view(), table: &table, y: y.view_mut(), accum: Accum::Add,
    ///     t: &mut t, workspace: &mut workspace, dropout: None,
    /// })?;
    ///
    /// let want = reference::forward(&op, &thetas[2], x.mapv(f64::from).view());
    /// assert!(y.row(3).iter().zip(want.row(3)).all(|(y, want)| (f64::from(*y) - want).abs() < 1e-5));
    /// assert!(y.index_axis(Axis(0), 2).iter().all(|&y| y == 0.0));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the pool or the table has a number that is no adapter's; nothing but
    /// the workspace is written then.
    pub fn forward_segments<E: Element>(
        &self,
        pool: &AdapterPool<'_>,
        call: ForwardSegments<'_, E>,
    ) -> Result<()> {
        E::run::<ForwardSegmentsPass>((*self, *pool, call))
    }

    /// Adds each adapter's gradient over its rows to `grads`, and writes or adds dX.
    ///
    /// Both get the bits of [`Backend::backward`] over the rows of one adapter, except that dropout's mask
    /// is that of the row's number in X.
    ///
    /// ```
    /// use kron_core::{
    ///     Accum, AdapterPool, BackwardSegments, Cpu, ForwardSegments, KronOp, KronShape, LayerDims, Pass,
    ///     PoolEntry, Scale, Theta,
    /// };
    /// use ndarray::Array2;
    ///
    /// let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 70 }, 4)?;
    /// let op = KronOp::new(shape, Scale::new(0.5)?);
    /// let thetas = [1, 2].map(|seed| Theta::random(shape, seed));
    /// let adapters = thetas.each_ref().map(|theta| PoolEntry { op, theta: theta.as_slice() });
    /// let pool = AdapterPool::new(&adapters)?;
    ///
    /// let (cpu, table) = (Cpu::new(), [1, -1, 1]);
    /// let x = Array2::from_shape_fn((3, 70), |(n, k)| (n + k) as f32 / 70.0);
    /// let mut y = Array2::zeros((3, 48));
    /// let mut t = vec![0.0; pool.t_len(3)];
    /// let passes = [Pass::Forward, Pass::Backward { dx: true }];
    /// let len = passes.map(|pass| cpu.segments_workspace_len(&pool, pass, 3));
    /// let mut workspace = vec![0.0; len[0].max(len[1])];
    /// cpu.forward_segments(&pool, ForwardSegments {
    ///     x: x.view(), table: &table, y: y.view_mut(), accum: Accum::Replace,
    ///     t: &mut t, workspace: &mut workspace, dropout: None,
    /// })?;
    ///
    /// // Adapter 0 has no row and brings no gradient.
    /// let (mut dx, mut grad) = (Array2::zeros(x.dim()), vec![0.0; shape.params()]);
    /// cpu.backward_segments(&pool, BackwardSegments {
    ///     x: x.view(), table: &table, t: &t, dy: y.view(), dx: Some((dx.view_mut(), Accum::Add)),
    ///     grads: &mut [&mut [], &mut grad], workspace: &mut workspace, dropout: None,
    /// })?;
    /// assert!(grad.iter().any(|&g| g != 0.0));
    /// assert!(dx.row(1).iter().all(|&dx| dx == 0.0));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the pool or the table has a number that is no adapter's; nothing but
    /// the workspace is written then.
    pub fn backward_segments<E: Element>(
        &self,
        pool: &AdapterPool<'_>,
        call: BackwardSegments<'_, '_, E>,
    ) -> Result<()> {
        E::run::<BackwardSegmentsPass>((*self, *pool, call))
    }
}

impl Cpu {
    /// Returns the float32 elements of scratch that every [`Cpu::forward_group`] or [`Cpu::backward_group`]
    /// over at most `rows` rows can run with; [`Pass::Merge`] is as [`Pass::Forward`].
    pub fn group_workspace_len(&self, group: &AdapterGroup<'_>, pass: Pass, rows: usize) -> usize {
        grouped::workspace_len(self.isa, group, pass, rows)
    }

    /// Writes or adds to each Y the outputs of its terms, and writes T; X is read once.
    ///
    /// A Y of one term gets the bits of [`Backend::forward`].
    ///
    /// ```
    /// use kron_core::{
    ///     Accum, AdapterGroup, Cpu, ForwardGroup, GroupTerm, KronOp, KronShape, LayerDims, Pass, Scale, Split,
    ///     Theta, reference,
    /// };
    /// use ndarray::Array2;
    ///
    /// // q is 48 × 70; k is 24 × 70.
    /// let shape = |d_out| KronShape::kron(LayerDims { d_out, d_in: 70 }, Split { a_out: 3, a_in: 7 }, 4);
    /// let (q, k) = (Theta::random(shape(48)?, 1), Theta::random(shape(24)?, 2));
    /// let scale = Scale::new(0.5)?;
    /// let terms = [(&q, 0), (&k, 1)].map(|(theta, output)| GroupTerm {
    ///     op: KronOp::new(*theta.shape(), scale), theta: theta.as_slice(), output, dropout: None,
    /// });
    /// let group = AdapterGroup::new(&terms)?;
    ///
    /// let (cpu, rows) = (Cpu::new(), 2);
    /// let x = Array2::from_shape_fn((rows, 70), |(n, k)| (n + k) as f32 / 70.0);
    /// let (mut y_q, mut y_k) = (Array2::zeros((rows, 48)), Array2::zeros((rows, 24)));
    /// let mut t = vec![0.0; group.t_len(rows)];
    /// let mut workspace = vec![0.0; cpu.group_workspace_len(&group, Pass::Forward, rows)];
    /// cpu.forward_group(&group, ForwardGroup {
    ///     x: x.view(), ys: &mut [(y_q.view_mut(), Accum::Add), (y_k.view_mut(), Accum::Add)],
    ///     t: &mut t, workspace: &mut workspace,
    /// })?;
    ///
    /// let want = reference::forward(&terms[1].op, &k, x.mapv(f64::from).view());
    /// assert!(y_k.iter().zip(&want).all(|(y, want)| (f64::from(*y) - want).abs() < 1e-5));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the group; nothing is written then.
    pub fn forward_group<E: Element>(
        &self,
        group: &AdapterGroup<'_>,
        call: ForwardGroup<'_, '_, E>,
    ) -> Result<()> {
        E::run::<ForwardGroupPass>((*self, *group, call))
    }

    /// Adds each term's gradient to `grads`, and writes or adds to dX the sum of all terms.
    ///
    /// Gradients get the bits of [`Backend::backward`] if all terms have one shape. dX is read and written
    /// once for neighbouring terms of one a_in and no mask.
    ///
    /// ```
    /// use kron_core::{
    ///     Accum, AdapterGroup, BackwardGroup, Cpu, ForwardGroup, GroupTerm, KronOp, KronShape, LayerDims, Pass,
    ///     Scale, Theta,
    /// };
    /// use ndarray::Array2;
    ///
    /// // Two terms of one Y.
    /// let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 70 }, 4)?;
    /// let op = KronOp::new(shape, Scale::new(0.5)?);
    /// let thetas = [1, 2].map(|seed| Theta::random(shape, seed));
    /// let terms = thetas.each_ref().map(|theta| GroupTerm {
    ///     op, theta: theta.as_slice(), output: 0, dropout: None,
    /// });
    /// let group = AdapterGroup::new(&terms)?;
    ///
    /// let (cpu, rows) = (Cpu::new(), 2);
    /// let x = Array2::from_shape_fn((rows, 70), |(n, k)| (n + k) as f32 / 70.0);
    /// let mut y = Array2::zeros((rows, 48));
    /// let mut t = vec![0.0; group.t_len(rows)];
    /// let passes = [Pass::Forward, Pass::Backward { dx: true }];
    /// let len = passes.map(|pass| cpu.group_workspace_len(&group, pass, rows));
    /// let mut workspace = vec![0.0; len[0].max(len[1])];
    /// cpu.forward_group(&group, ForwardGroup {
    ///     x: x.view(), ys: &mut [(y.view_mut(), Accum::Replace)], t: &mut t, workspace: &mut workspace,
    /// })?;
    ///
    /// let mut dx = Array2::zeros(x.dim());
    /// let mut grads = [vec![0.0; shape.params()], vec![0.0; shape.params()]];
    /// let [first, second] = &mut grads;
    /// cpu.backward_group(&group, BackwardGroup {
    ///     x: x.view(), t: &t, dys: &[y.view()], dx: Some((dx.view_mut(), Accum::Add)),
    ///     grads: &mut [first, second], workspace: &mut workspace,
    /// })?;
    /// assert!(grads.iter().flatten().any(|&g| g != 0.0) && dx.iter().any(|&dx| dx != 0.0));
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a buffer does not fit the group; nothing is written then.
    pub fn backward_group<E: Element>(
        &self,
        group: &AdapterGroup<'_>,
        call: BackwardGroup<'_, '_, E>,
    ) -> Result<()> {
        E::run::<BackwardGroupPass>((*self, *group, call))
    }
}

/// Compiles a pass for each element type; its arguments are those of the function.
macro_rules! passes {
    ($($pass:ident<$($life:lifetime $(: $outer:lifetime)?),*>: ($subject:ty, $call:ty) => $run:path),*) => {$(
        struct $pass<$($life $(: $outer)?),*>($(std::marker::PhantomData<&$life ()>),*);

        impl<$($life $(: $outer)?),*> PerElement for $pass<$($life),*> {
            type Arguments<E: Element> = (Cpu, $subject, $call);
            fn f32((cpu, subject, call): Self::Arguments<f32>) -> Result<()> {
                $run(cpu, &subject, call)
            }
            fn f16((cpu, subject, call): Self::Arguments<half::f16>) -> Result<()> {
                $run(cpu, &subject, call)
            }
            fn bf16((cpu, subject, call): Self::Arguments<half::bf16>) -> Result<()> {
                $run(cpu, &subject, call)
            }
        }
    )*};
}

passes!(
    ForwardPass<'a>: (KronOp, Forward<'a, Cpu, E>) => forward::run,
    BackwardPass<'a>: (KronOp, Backward<'a, Cpu, E>) => backward::run,
    MergePass<'a>: (KronOp, Merge<'a, Cpu, E>) => merge::run,
    ForwardSegmentsPass<'a, 'p>: (AdapterPool<'p>, ForwardSegments<'a, E>) => segments::forward,
    BackwardSegmentsPass<'a, 'g: 'a, 'p>: (AdapterPool<'p>, BackwardSegments<'a, 'g, E>) => segments::backward,
    ForwardGroupPass<'a, 'v: 'a, 'g>: (AdapterGroup<'g>, ForwardGroup<'a, 'v, E>) => grouped::forward,
    BackwardGroupPass<'a, 'v: 'a, 'g>: (AdapterGroup<'g>, BackwardGroup<'a, 'v, E>) => grouped::backward
);
