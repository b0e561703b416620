//! [`Trace`]: a layer's two passes without candle's graph.

use candle_core::{CustomOp1, Result, Tensor, bail};
use kron_core::DropoutKey;

use crate::frozen::Frozen;
use crate::linear::KronLinear;
use crate::op::{Call, Fused};
use crate::trainable_delta::TrainableDelta;

/// A forward pass of a layer, kept for its backward pass.
///
/// candle's graph fills a buffer with zeros for every gradient and adds to it. An op that computes several layers keeps
/// their traces instead, and passes gradients on as they are.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use candle_nn::Linear;
/// # use kron_candle::{KronLinear, KronShape, LayerDims, ScaleRule, Scaling, TrainableDelta};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let device = Device::Cpu;
/// # let base = Linear::new(Tensor::randn(0f32, 0.1, (64, 96), &device)?, None);
/// # let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
/// # let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?;
/// let layer = KronLinear::new(base, TrainableDelta::new("layer.0", shape, scaling, 1, &device)?)?;
/// let x = Tensor::randn(0f32, 1.0, (5, 96), &device)?;
/// let (y, trace) = layer.trace(&x, None)?;
/// let (dx, dtheta) = trace.backward(&y.ones_like()?, true)?;
/// assert_eq!(dx.expect("asked for").dims(), [5, 96]);
/// assert_eq!(dtheta.expect("of the adapter").dims(), [shape.params()]);
/// # Ok(()) }
/// ```
pub struct Trace {
    x: Tensor,
    op: Op,
}

enum Op {
    Fused(Box<Fused>, Tensor),
    Frozen(Frozen),
}

impl KronLinear {
    /// Returns true if [`KronLinear::trace`] has all gradients: the base is frozen, and an adapter is fused.
    pub fn is_traceable(&self) -> bool {
        self.base().is_some() && self.deltas().iter().all(TrainableDelta::is_fused)
    }

    /// Computes y as [`KronLinear::forward_with`] does, without candle's graph.
    ///
    /// # Errors
    /// As [`KronLinear::forward_with`], and for a layer that is not traceable.
    pub fn trace(&self, x: &Tensor, dropout: Option<DropoutKey>) -> Result<(Tensor, Trace)> {
        let Some(base) = self.base().filter(|_| self.is_traceable()) else {
            bail!("{self:?} trains its weight or is unfused, so that only candle's graph has its gradients");
        };
        let x = x.detach().contiguous()?;
        if self.deltas().is_empty() {
            let op = Frozen(base);
            return Ok((x.apply_op1_no_bwd(&op)?, Trace { x, op: Op::Frozen(op) }));
        }
        let theta = self.joined_theta()?.detach();
        let op = Fused { call: Call::new(self.terms(dropout, 0).collect()), base };
        Ok((x.apply_op2_no_bwd(&theta, &op)?, Trace { x, op: Op::Fused(Box::new(op), theta) }))
    }
}

impl Trace {
    /// Returns dX, if it is wanted, and the gradient of the adapter's θ, of all terms one after the other, for the
    /// gradient of y.
    ///
    /// # Errors
    /// dY has another shape, dtype or device than y.
    pub fn backward(&self, dy: &Tensor, wants_dx: bool) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match &self.op {
            Op::Fused(op, theta) => {
                let (dx, dtheta) = op.backward(&self.x, theta, dy, wants_dx)?;
                Ok((dx, Some(dtheta)))
            }
            // A base needs nothing but the shape of y.
            Op::Frozen(op) => Ok((if wants_dx { op.bwd(&self.x, dy, dy)? } else { None }, None)),
        }
    }
}
