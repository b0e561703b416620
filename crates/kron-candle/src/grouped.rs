//! Frozen layers that read one x, their adapters in one call of kron-core, on the CPU.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DeviceLocation, Result, Shape, Tensor, bail};
use kron_core::{AdapterGroup, DropoutKey, Outer};

use crate::base::FrozenLinear;
use crate::device_ops::{Operand, Term, on, on_all, tensor, with_activation};
use crate::linear::KronLinear;
use crate::terms::{self, Kept};
use crate::trainable_delta::TrainableDelta;
use crate::views::elements;

/// A forward pass of several layers on one x, without candle's graph.
pub(crate) struct Grouped {
    bases: Vec<Arc<dyn FrozenLinear>>,
    /// True for each base that has an adapter; an output of the terms is a number among these.
    adapted: Vec<bool>,
    terms: Vec<Term>,
    x: Tensor,
    /// θ of the terms, one after the other.
    theta: Tensor,
    t: Vec<f32>,
}

/// Returns true if one call computes the adapters of these layers: two layers or more have one, of Kronecker
/// factors and one dropout, and x is on the CPU.
pub(crate) fn is_groupable(layers: &[&KronLinear], x: &Tensor) -> bool {
    let deltas = || layers.iter().flat_map(|layer| layer.deltas());
    let first = deltas().next();
    let fits = |delta: &TrainableDelta| {
        let (op, dropout) = (delta.op(), first.map(|first| first.op().dropout));
        op.shape.outer() == Outer::Trained && Some(op.dropout) == dropout
    };
    x.device().is_cpu()
        && layers.iter().all(|layer| layer.is_traceable())
        && layers.iter().filter(|layer| !layer.deltas().is_empty()).count() > 1
        && deltas().count() <= AdapterGroup::MAX_TERMS
        && deltas().all(fits)
}

impl Grouped {
    /// Computes y of each layer.
    ///
    /// # Errors
    /// As [`KronLinear::forward_with`], and for a layer whose weight is trained.
    pub fn forward(
        layers: &[&KronLinear],
        x: Tensor,
        dropout: Option<DropoutKey>,
    ) -> Result<(Vec<Tensor>, Self)> {
        let bases = layers.iter().map(|layer| match layer.base() {
            Some(base) => Ok(base),
            None => bail!("{layer:?} trains its weight, so that only candle's graph has its gradients"),
        });
        let bases = bases.collect::<Result<Vec<_>>>()?;
        let adapted = layers.iter().map(|layer| !layer.deltas().is_empty()).collect::<Vec<_>>();
        let with_adapter = layers.iter().filter(|layer| !layer.deltas().is_empty()).enumerate();
        let terms = with_adapter.flat_map(|(output, layer)| layer.terms(dropout, output)).collect::<Vec<_>>();
        let thetas = layers.iter().flat_map(|layer| layer.deltas());
        let thetas: Vec<Tensor> = thetas.map(|delta| delta.theta().as_detached_tensor()).collect();
        let theta = Tensor::cat(&thetas, 0)?;
        let (ys, t) = on(DeviceLocation::Cpu, &x, |x: Operand<CpuStorage>| {
            let y = |base: &Arc<dyn FrozenLinear>| match x.1.dims().split_last() {
                Some((&last, _)) if last == base.dims().d_in => base.cpu_forward(x.0, x.1),
                _ => bail!("x is {:?}, but d_in of its layers is {}", x.1.shape(), base.dims().d_in),
            };
            let mut ys = bases.iter().map(y).collect::<Result<Vec<_>>>()?;
            let mut outputs: Vec<&mut CpuStorage> =
                ys.iter_mut().zip(&adapted).filter_map(|(y, adapted)| adapted.then_some(y)).collect();
            let t = on(DeviceLocation::Cpu, &theta, |theta: Operand<CpuStorage>| {
                with_activation!("activations are", x.0.dtype(), E => {
                    terms::forward::<E>(&terms, elements(theta)?, x, &mut outputs)
                })
            })?;
            Ok((ys, t))
        })?;
        let outer = &x.dims()[..x.rank() - 1];
        let shape = |base: &Arc<dyn FrozenLinear>| Shape::from([outer, &[base.dims().d_out]].concat());
        let ys = ys.into_iter().zip(&bases).map(|(y, base)| tensor(y, shape(base))).collect();
        Ok((ys, Self { bases, adapted, terms, x, theta, t }))
    }

    /// Returns dX, if it is wanted, in one buffer, and dθ of all terms, for the gradient of each y.
    ///
    /// # Errors
    /// A gradient has another shape, dtype or device than its y.
    pub fn backward(&self, dys: &[Tensor], wants_dx: bool) -> Result<(Option<Tensor>, Tensor)> {
        if dys.len() != self.bases.len() {
            bail!("{} gradients are given for the outputs of {} layers", dys.len(), self.bases.len());
        }
        let dys = dys.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let (dx, dtheta) = on_all(DeviceLocation::Cpu, &dys, |dys: &[Operand<CpuStorage>]| {
            let mut dx: Option<CpuStorage> = None;
            for (base, dy) in self.bases.iter().zip(dys).filter(|_| wants_dx) {
                match &mut dx {
                    Some(dx) => base.cpu_backward_add(dy.0, dy.1, dx)?,
                    None => dx = Some(base.cpu_backward(dy.0, dy.1)?),
                }
            }
            let outputs = dys.iter().zip(&self.adapted).filter_map(|(dy, adapted)| adapted.then_some(*dy));
            let outputs: Vec<Operand<CpuStorage>> = outputs.collect();
            let dtheta = on(DeviceLocation::Cpu, &self.x, |x: Operand<CpuStorage>| {
                on(DeviceLocation::Cpu, &self.theta, |theta: Operand<CpuStorage>| {
                    let kept = Kept { theta: elements(theta)?, x, t: &self.t };
                    with_activation!("a gradient is", x.0.dtype(), E => {
                        terms::backward::<E>(&self.terms, kept, &outputs, dx.as_mut())
                    })
                })
            })?;
            Ok((dx, dtheta))
        })?;
        let dx = dx.map(|dx| tensor(dx, self.x.shape()));
        Ok((dx, tensor(CpuStorage::F32(dtheta), self.theta.shape())))
    }
}
