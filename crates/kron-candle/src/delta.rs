//! [`Delta`]: the trained half of an adapted layer.

use std::ops::Range;

use candle_core::{Device, Result, Var};
use kron_adapter::{Layer, Scaling};
use kron_core::{Dropout, DropoutKey, Inner, KronOp, KronShape, Theta};

use crate::{Group, Part};

/// An adapter of one module: ΔW = s·A ⊗ (B·C) with θ = `[A | B | C]` in one variable.
///
/// Cloning shares the variable.
#[derive(Clone, Debug)]
pub struct Delta {
    module: String,
    scaling: Scaling,
    op: KronOp,
    theta: Var,
    stream: u64,
    fused: bool,
}

impl Delta {
    /// The paper's start for the module of this dotted path: ΔW = 0.
    ///
    /// # Errors
    /// A module's name that [`Layer::new`] refuses.
    pub fn new(module: &str, shape: KronShape, scaling: Scaling, seed: u64, device: &Device) -> Result<Self> {
        let layer =
            Layer::new(module, scaling, Theta::init(shape, seed)).map_err(candle_core::Error::wrap)?;
        Self::from_layer(&layer, device)
    }

    /// The factors of a layer that was trained before.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn from_layer(layer: &Layer, device: &Device) -> Result<Self> {
        let theta = Var::from_slice(layer.theta().as_slice(), layer.shape().params(), device)?;
        let (module, scaling) = (layer.module().into(), layer.scaling());
        Ok(Self { module, scaling, op: layer.op(), theta, stream: 0, fused: true })
    }

    /// The same adapter with dropout on its input, in calls that bring a key.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { op: self.op.with_dropout(dropout), ..self }
    }

    /// The same adapter with a number that no other layer of the model has:
    /// under one key, every layer then has a mask of its own.
    pub fn with_stream(self, stream: u64) -> Self {
        Self { stream, ..self }
    }

    /// The same adapter out of candle's own products and autograd, over the same
    /// variable: what a model of candle has without this crate's op. It takes no dropout.
    pub fn unfused(self) -> Self {
        Self { fused: false, ..self }
    }

    /// The factors as they are now.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn to_layer(&self) -> Result<Layer> {
        let theta = self.theta.as_tensor().to_device(&Device::Cpu)?.to_vec1()?;
        let theta = Theta::from_vec(self.op.shape, theta).map_err(candle_core::Error::wrap)?;
        Layer::new(&self.module, self.scaling, theta).map_err(candle_core::Error::wrap)
    }

    /// Where A, B and C lie in θ: LoRA has no A, and a full M stands in C's place without a B.
    pub const fn factors(&self) -> [Range<usize>; 3] {
        let shape = &self.op.shape;
        let (b, c) = (shape.a_len(), shape.a_len() + shape.b_len());
        [0..b, b..c, c..shape.params()]
    }

    /// θ with LoRA+ (arXiv 2402.12354): the factor that starts at zero (B, or a
    /// full M) at `ratio` times the step's rate, the others at the step's own.
    ///
    /// # Errors
    /// A ratio or a decay that is negative, NaN or infinite.
    pub fn group(&self, ratio: f64, decay: f64) -> Result<Group> {
        if ratio == 1.0 {
            return Group::whole(self.theta.clone(), 1.0, decay);
        }
        let rates = match self.op.shape.inner() {
            Inner::LowRank(_) => [1.0, ratio, 1.0],
            Inner::Full => [1.0, 1.0, ratio],
        };
        let parts = self.factors().into_iter().zip(rates).map(|(range, rate)| Part { range, rate, decay });
        Group::new(self.theta.clone(), parts.collect())
    }

    /// The module's dotted path in the model.
    pub fn module(&self) -> &str {
        &self.module
    }
    /// Shape, scale and dropout.
    pub const fn op(&self) -> &KronOp {
        &self.op
    }
    /// Whether this crate's op computes it, and not candle's own.
    pub const fn is_fused(&self) -> bool {
        self.fused
    }
    /// θ, `[A | B | C]`, float32.
    pub const fn theta(&self) -> &Var {
        &self.theta
    }

    /// The key of this layer's mask under the key of a step.
    pub(crate) fn key(&self, step: DropoutKey) -> DropoutKey {
        // A run has fewer than 2⁴⁰ steps.
        DropoutKey { seed: step.seed, offset: step.offset.wrapping_add(self.stream << 40) }
    }
}
