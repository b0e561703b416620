//! [`GroupTrace`]: the two passes of several layers on one x, without candle's graph.

use candle_core::{Error, Result, Tensor, bail};

use super::ops::add;
use crate::grouped::{Grouped, is_groupable};
use crate::{DropoutKey, KronLinear, Trace};

/// A forward pass of several layers on one x, such as q, k and v, kept for its backward pass.
///
/// On the CPU the adapters of two layers or more are one call: x is read once, and the layers add to one dX. That is
/// for adapters with Kronecker factors and equal dropout, 16 terms at most; others are computed layer by layer, and
/// their dX are added.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use candle_nn::Linear;
/// use kron_candle::models::GroupTrace;
/// # use kron_candle::{KronLinear, KronShape, LayerDims, ScaleRule, Scaling, Split, TrainableDelta};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let device = Device::Cpu;
/// # let layer = |d_out, seed| -> Result<KronLinear, Box<dyn std::error::Error>> {
/// #     let base = Linear::new(Tensor::randn(0f32, 0.1, (d_out, 96), &device)?, None);
/// #     let shape = KronShape::kron(LayerDims { d_out, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
/// #     let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
/// #     Ok(KronLinear::new(base, TrainableDelta::new("layer", shape, scaling, seed, &device)?)?)
/// # };
/// let (gate, up) = (layer(64, 1)?, layer(64, 2)?);
/// let x = Tensor::randn(0f32, 1.0, (5, 96), &device)?;
/// let (ys, trace) = GroupTrace::new(&[&gate, &up], &x, None)?;
/// let dys = [ys[0].ones_like()?, ys[1].ones_like()?];
/// let (dx, dthetas) = trace.backward(&dys, true)?;
/// assert_eq!(dx.expect("asked for").dims(), [5, 96]);
/// assert_eq!(dthetas.iter().map(Tensor::elem_count).sum::<usize>(), 2 * gate.deltas()[0].theta().elem_count());
/// # Ok(()) }
/// ```
pub struct GroupTrace(Passes);

enum Passes {
    Grouped(Box<Grouped>),
    Each(Vec<Trace>),
}

impl GroupTrace {
    /// Computes y of each layer as [`KronLinear::forward_with`] does, with the same bits.
    ///
    /// # Errors
    /// As [`KronLinear::trace`].
    pub fn new(
        layers: &[&KronLinear],
        x: &Tensor,
        dropout: Option<DropoutKey>,
    ) -> Result<(Vec<Tensor>, Self)> {
        if is_groupable(layers, x) {
            let (ys, grouped) = Grouped::forward(layers, x.detach().contiguous()?, dropout)?;
            return Ok((ys, Self(Passes::Grouped(Box::new(grouped)))));
        }
        let each = layers.iter().map(|layer| layer.trace(x, dropout)).collect::<Result<Vec<_>>>()?;
        let (ys, traces) = each.into_iter().unzip();
        Ok((ys, Self(Passes::Each(traces))))
    }

    /// Returns dX of all layers, if it is wanted, and the gradients of their θ, in order, for the gradient of each y.
    ///
    /// The gradients of a group are one tensor.
    ///
    /// # Errors
    /// There is another number of gradients than of layers, or one has another shape, dtype or device than its y.
    pub fn backward(&self, dys: &[Tensor], wants_dx: bool) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        let traces = match &self.0 {
            Passes::Grouped(grouped) => {
                let (dx, dtheta) = grouped.backward(dys, wants_dx)?;
                return Ok((dx, vec![dtheta]));
            }
            Passes::Each(traces) if traces.len() == dys.len() => traces,
            Passes::Each(traces) => bail!("{} gradients are given for {} layers", dys.len(), traces.len()),
        };
        let (mut sum, mut dthetas) = (None, Vec::new());
        for (trace, dy) in traces.iter().zip(dys) {
            let (dx, dtheta) = trace.backward(dy, wants_dx)?;
            dthetas.extend(dtheta);
            sum = match (sum, dx) {
                (Some(sum), Some(dx)) => Some(add(&sum, &dx)?),
                (sum, dx) => sum.or(dx),
            };
        }
        Ok((sum, dthetas))
    }
}

/// Computes y of each layer; without a key, which is an evaluation, in no graph and with one call for the adapters.
///
/// # Errors
/// As [`KronLinear::forward_with`].
pub(super) fn forward_each<const N: usize>(
    layers: [&KronLinear; N],
    x: &Tensor,
    key: Option<DropoutKey>,
) -> Result<[Tensor; N]> {
    let ys = match key.is_none() && is_groupable(&layers, x) {
        true => GroupTrace::new(&layers, x, None)?.0,
        false => layers.iter().map(|layer| layer.forward_with(x, key)).collect::<Result<_>>()?,
    };
    array(ys)
}

/// Returns the outputs of N layers as an array.
///
/// # Errors
/// There are others than N.
pub(super) fn array<const N: usize>(ys: Vec<Tensor>) -> Result<[Tensor; N]> {
    let count = ys.len();
    ys.try_into().map_err(|_| Error::msg(format!("{N} layers have {count} outputs")))
}
