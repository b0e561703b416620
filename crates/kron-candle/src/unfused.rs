//! Adapter out of candle's own ops and autograd, for comparison with the fused op.

use candle_core::{Result, Tensor};
use kron_core::{Inner, Outer};

use crate::trainable_delta::TrainableDelta;

/// Computes s·x·(A ⊗ (B·C))ᵀ, … × d_out, in the dtype of x, … × d_in, by the reshape identity:
///
/// ```text
/// T = x·Cᵀ       n·a_in × r      (x as n·a_in × c_in)
/// U = s·A·T      n·a_out × r     (LoRA: T itself)
/// y = U·Bᵀ       n·a_out × b_out (full inner factor: U itself)
/// ```
pub(crate) fn added(delta: &TrainableDelta, x: &Tensor) -> Result<Tensor> {
    let (shape, s) = (delta.op().shape, f64::from(delta.op().scale.get()));
    let [a, b, c] = delta.factors().map(|range| delta.theta().narrow(0, range.start, range.len()));
    let factor =
        |part: Result<Tensor>, rows: usize, cols: usize| part?.reshape((rows, cols))?.to_dtype(x.dtype());
    let (rows, width) = (x.elem_count() / shape.d_in(), shape.width());
    let c = factor(c, width, shape.c_in())?;
    let t = (x.reshape((rows * shape.a_in(), shape.c_in()))?.matmul(&c.t()?)? * s)?;
    let u = match shape.outer() {
        Outer::One => t,
        Outer::Trained => {
            // One product with a_in in front copies T twice, and is faster than a product per row.
            let t = t.reshape((rows, shape.a_in(), width))?.transpose(0, 1)?.contiguous()?;
            let u =
                factor(a, shape.a_out(), shape.a_in())?.matmul(&t.reshape((shape.a_in(), rows * width))?)?;
            u.reshape((shape.a_out(), rows, width))?.transpose(0, 1)?.contiguous()?
        }
    };
    let y = match shape.inner() {
        Inner::Full => u,
        Inner::LowRank(rank) => {
            let b = factor(b, shape.b_out(), rank)?;
            u.reshape((rows * shape.a_out(), rank))?.matmul(&b.t()?)?
        }
    };
    let outer = &x.dims()[..x.rank() - 1];
    y.reshape([outer, &[shape.d_out()]].concat())
}
