//! [`TrainableDelta`]: the trained parameters of an adapted layer.

use std::ops::Range;

use candle_core::{Device, Result, Var};
use kron_adapter::{Layer, Scaling};
use kron_core::{Dropout, DropoutKey, Inner, KronOp, KronShape, Theta};

use crate::error::of_adapter;
use crate::optim::{Group, Part};

/// Adapter of one module: ΔW = s·A ⊗ (B·C), with θ = `[A | B | C]` in one variable.
///
/// Clones share the variable.
///
/// ```
/// use candle_core::Device;
/// use kron_candle::{KronShape, LayerDims, ScaleRule, Scaling, Split, TrainableDelta};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
/// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
/// let delta = TrainableDelta::new("layer.0.q_proj", shape, scaling, 7, &Device::Cpu)?;
/// assert_eq!(delta.theta().elem_count(), 4 * 2 + 8 * (16 + 48));
/// assert_eq!(delta.factors(), [0..8, 8..136, 136..520]);
///
/// // The factors of a trained layer give the same θ again.
/// let again = TrainableDelta::from_layer(&delta.to_layer()?, &Device::Cpu)?;
/// assert_eq!(again.theta().to_vec1::<f32>()?, delta.theta().to_vec1::<f32>()?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TrainableDelta {
    module: String,
    /// Number among the terms of the module's sum.
    term: usize,
    scaling: Scaling,
    op: KronOp,
    theta: Var,
    stream: u64,
    fused: bool,
}

impl TrainableDelta {
    /// Makes a new adapter with the paper's initial values, for which ΔW = 0.
    ///
    /// `module` is the module's dotted path in the model.
    ///
    /// # Errors
    /// [`Layer::new`] rejects the name, or candle fails.
    pub fn new(module: &str, shape: KronShape, scaling: Scaling, seed: u64, device: &Device) -> Result<Self> {
        let layer = Layer::new(module, scaling, Theta::init(shape, seed)).map_err(of_adapter)?;
        Self::from_layer(&layer, device)
    }

    /// Continues with the factors of a trained layer.
    ///
    /// ```
    /// use candle_core::Device;
    /// use kron_candle::{KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta, TrainableDelta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
    /// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
    /// let layer = Layer::new("layer.0.q_proj", scaling, Theta::random(shape, 1))?;
    /// let delta = TrainableDelta::from_layer(&layer, &Device::Cpu)?;
    /// assert_eq!(delta.to_layer()?, layer);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// candle fails.
    pub fn from_layer(layer: &Layer, device: &Device) -> Result<Self> {
        let theta = Var::from_slice(layer.theta().as_slice(), layer.shape().params(), device)?;
        let (module, scaling) = (layer.module().into(), layer.scaling());
        Ok(Self { module, term: layer.term(), scaling, op: layer.op(), theta, stream: 0, fused: true })
    }

    /// Sets the number among the terms of the module's sum, from 0.
    pub(crate) fn with_term(self, term: usize) -> Self {
        Self { term, ..self }
    }

    /// Sets the dropout on the adapter's input, applied in calls with a key.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { op: self.op.with_dropout(dropout), ..self }
    }

    /// Sets the number of the layer's random stream.
    ///
    /// Layers with different streams have different dropout masks under one key.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{Dropout, DropoutKey, KronLinear, KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta, TrainableDelta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
    /// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
    /// let layer = Layer::new("layer.0.q_proj", scaling, Theta::random(shape, 1))?;
    /// let delta = TrainableDelta::from_layer(&layer, &Device::Cpu)?.with_dropout(Dropout::new(0.5)?);
    /// let y = |stream| {
    ///     let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    ///     let x = Tensor::ones((2, 96), DType::F32, &Device::Cpu)?;
    ///     let layer = KronLinear::new(base, delta.clone().with_stream(stream))?;
    ///     layer.forward_with(&x, Some(DropoutKey { seed: 1, offset: 0 }))?.to_vec2::<f32>()
    /// };
    /// assert_eq!(y(0)?, y(0)?);
    /// assert_ne!(y(0)?, y(1)?);
    /// # Ok(()) }
    /// ```
    pub fn with_stream(self, stream: u64) -> Self {
        Self { stream, ..self }
    }

    /// Computes the adapter by candle's own products and autograd, over the same variable, for comparison.
    ///
    /// An unfused adapter supports no dropout.
    pub fn unfused(self) -> Self {
        Self { fused: false, ..self }
    }

    /// Copies the current factors.
    ///
    /// # Errors
    /// candle fails.
    pub fn to_layer(&self) -> Result<Layer> {
        let theta = self.theta.as_tensor().to_device(&Device::Cpu)?.to_vec1()?;
        let theta = Theta::from_vec(self.op.shape, theta).map_err(candle_core::Error::wrap)?;
        Ok(Layer::new(&self.module, self.scaling, theta).map_err(of_adapter)?.with_term(self.term))
    }

    /// Returns the ranges of A, B and C in θ.
    ///
    /// LoRA has an empty A; a full inner factor M takes the place of C, with an empty B.
    pub const fn factors(&self) -> [Range<usize>; 3] {
        let shape = &self.op.shape;
        let (b, c) = (shape.a_len(), shape.a_len() + shape.b_len());
        [0..b, b..c, c..shape.params()]
    }

    /// Returns θ as an optimizer's group, with LoRA+ (arXiv 2402.12354).
    ///
    /// The factor that starts at zero (B, or a full M) has `ratio` times the step's learning rate, the others have
    /// the step's own.
    ///
    /// # Errors
    /// The ratio or decay is negative, NaN or infinite.
    ///
    /// ```
    /// # use candle_core::Device;
    /// # use kron_candle::{KronShape, LayerDims, ScaleRule, Scaling, TrainableDelta};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// # let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?;
    /// let delta = TrainableDelta::new("m", shape, scaling, 7, &Device::Cpu)?;
    /// let group = delta.group(16.0, 0.0)?;
    /// let ratios: Vec<f64> = group.parts().iter().map(|part| part.lr_ratio).collect();
    /// assert_eq!(ratios, [16.0, 1.0]); // B, then C
    /// # Ok(()) }
    /// ```
    pub fn group(&self, ratio: f64, decay: f64) -> Result<Group> {
        if ratio == 1.0 {
            return Group::whole(self.theta.clone(), 1.0, decay);
        }
        let ratios = match self.op.shape.inner() {
            Inner::LowRank(_) => [1.0, ratio, 1.0],
            Inner::Full => [1.0, 1.0, ratio],
        };
        let parts = self.factors().into_iter().zip(ratios);
        let parts = parts.map(|(range, lr_ratio)| Part { range, lr_ratio, decay });
        Group::new(self.theta.clone(), parts.collect())
    }

    /// Returns the module's dotted path in the model.
    pub fn module(&self) -> &str {
        &self.module
    }
    /// Returns the number among the terms of the module's sum.
    pub const fn term(&self) -> usize {
        self.term
    }
    /// Returns shape, scale and dropout.
    pub const fn op(&self) -> &KronOp {
        &self.op
    }
    /// Returns `true` if the fused op computes the adapter, `false` for candle's own ops.
    pub const fn is_fused(&self) -> bool {
        self.fused
    }
    /// Returns θ = `[A | B | C]`, float32.
    pub const fn theta(&self) -> &Var {
        &self.theta
    }

    /// Derives the key of this layer's mask from the key of a step.
    pub(crate) fn key(&self, step: DropoutKey) -> DropoutKey {
        // A run has fewer than 2⁴⁰ steps, so streams do not overlap.
        DropoutKey { seed: step.seed, offset: step.offset.wrapping_add(self.stream << 40) }
    }
}
