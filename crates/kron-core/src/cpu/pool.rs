//! [`AdapterPool`] and the calls over segments of rows, each of one adapter of a pool.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::theta::check_len;
use crate::{Accum, DropoutKey, Error, KronOp, LayerDims, Result};

/// One adapter of an [`AdapterPool`].
#[derive(Clone, Copy, Debug)]
pub struct PoolEntry<'a> {
    /// Shape, scale and dropout.
    pub op: KronOp,
    /// θ, \[A | B | C\].
    pub theta: &'a [f32],
}

/// Adapters of one layer, whose factors and ranks may differ; checked once, for any number of calls.
///
/// ```
/// use kron_core::{AdapterPool, KronOp, KronShape, LayerDims, PoolEntry, Scale, Split, Theta};
///
/// let layer = LayerDims { d_out: 48, d_in: 70 };
/// let kron = KronShape::kron(layer, Split { a_out: 3, a_in: 7 }, 4)?;
/// let lora = KronShape::lora(layer, 2)?;
/// let thetas = [Theta::random(kron, 1), Theta::random(lora, 2)];
/// let scale = Scale::new(0.5)?;
/// let adapters = thetas.each_ref().map(|theta| PoolEntry {
///     op: KronOp::new(*theta.shape(), scale), theta: theta.as_slice(),
/// });
/// let pool = AdapterPool::new(&adapters)?;
/// assert_eq!(pool.t_len(10), 10 * 7 * 4); // the largest a_in × r
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AdapterPool<'a> {
    adapters: &'a [PoolEntry<'a>],
    layer: LayerDims,
    t_row: usize,
}

impl<'a> AdapterPool<'a> {
    /// Returns the pool of these adapters; their numbers in a table are those in the slice.
    ///
    /// # Errors
    /// Fails without an adapter, with more than `i32::MAX`, on adapters of different d_out × d_in, and on
    /// a θ whose length is not its shape's.
    pub fn new(adapters: &'a [PoolEntry<'a>]) -> Result<Self> {
        let Some(first) = adapters.first() else {
            return Err(Error::Value("the pool has no adapter, but it needs at least one".into()));
        };
        if i32::try_from(adapters.len()).is_err() {
            return Err(Error::Value(format!(
                "the pool has {} adapters, but a table has numbers up to {}",
                adapters.len(),
                i32::MAX
            )));
        }
        let layer = LayerDims { d_out: first.op.shape.d_out(), d_in: first.op.shape.d_in() };
        let mut t_row = 0;
        for (i, PoolEntry { op, theta }) in adapters.iter().enumerate() {
            let s = &op.shape;
            if (s.d_out(), s.d_in()) != (layer.d_out, layer.d_in) {
                return Err(Error::Shape(format!(
                    "adapter {i} is {s}, but all adapters of the pool are of {}×{}",
                    layer.d_out, layer.d_in
                )));
            }
            check_len("theta", s, theta.len())?;
            t_row = t_row.max(s.t_row());
        }
        Ok(Self { adapters, layer, t_row })
    }

    /// The adapters, by number.
    pub const fn adapters(&self) -> &'a [PoolEntry<'a>] {
        self.adapters
    }

    /// Sizes of the layer.
    pub const fn layer(&self) -> LayerDims {
        self.layer
    }

    /// Elements of T for `rows` rows: n × the largest a_in·r of the pool.
    pub const fn t_len(&self, rows: usize) -> usize {
        rows.saturating_mul(self.t_row)
    }
}

/// Arguments of [`Cpu::forward_segments`](crate::Cpu::forward_segments), which has an example.
#[derive(Debug)]
pub struct ForwardSegments<'a, E> {
    /// X, n × d_in; the inner stride is 1.
    pub x: ArrayView2<'a, E>,
    /// Number of each row's adapter in the pool, in any order; −1 for a row without an adapter.
    pub table: &'a [i32],
    /// Y, n × d_out; the inner stride is 1. Rows without an adapter keep their bits.
    pub y: ArrayViewMut2<'a, E>,
    /// Treatment of the old contents of Y's rows.
    pub accum: Accum,
    /// T, at least [`AdapterPool::t_len`] elements; written, in an order that backward knows. Keep it for backward.
    pub t: &'a mut [f32],
    /// Scratch, at least [`Cpu::segments_workspace_len`](crate::Cpu::segments_workspace_len) elements; its
    /// contents are lost.
    pub workspace: &'a mut [f32],
    /// Key of the dropout mask, in which a row has its number in X; `None` in evaluation.
    pub dropout: Option<DropoutKey>,
}

/// Arguments of [`Cpu::backward_segments`](crate::Cpu::backward_segments), which has an example.
#[derive(Debug)]
pub struct BackwardSegments<'a, 'g, E> {
    /// X of the forward call, n × d_in.
    pub x: ArrayView2<'a, E>,
    /// Table of the forward call.
    pub table: &'a [i32],
    /// T of the forward call.
    pub t: &'a [f32],
    /// dY, n × d_out; rows without an adapter are not read.
    pub dy: ArrayView2<'a, E>,
    /// dX, n × d_in, and the treatment of its rows' old contents; rows without an adapter keep their bits.
    /// `None` skips dX.
    pub dx: Option<(ArrayViewMut2<'a, E>, Accum)>,
    /// \[dA | dB | dC\] of each adapter of the pool, always added to; may be empty for an adapter without a row.
    pub grads: &'a mut [&'g mut [f32]],
    /// Scratch, at least [`Cpu::segments_workspace_len`](crate::Cpu::segments_workspace_len) elements; its
    /// contents are lost.
    pub workspace: &'a mut [f32],
    /// Key of the forward call.
    pub dropout: Option<DropoutKey>,
}
