//! [`KronLinear`]: a linear layer with an optional adapter.

use std::sync::Arc;

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::Linear;
use kron_core::{AdapterGroup, Dropout, DropoutKey};

use crate::base::FrozenLinear;
use crate::device_ops::Term;
use crate::frozen::Frozen;
use crate::op::{self, Call, Fused};
use crate::trainable_delta::TrainableDelta;
use crate::unfused;

/// Base of an adapted layer.
#[derive(Clone)]
enum Base {
    /// W and bias, multiplied by the fused op itself.
    Matrix(Linear),
    /// Any other frozen map.
    Frozen(Arc<dyn FrozenLinear>),
}

/// Linear layer with an optional adapter: y = base(x) + s·x·(A ⊗ (B·C))ᵀ.
///
/// LoRA, KronA and Kron-LoRA are shapes of its [`TrainableDelta`]; without one the layer is its base, and
/// [`KronLinear::add_term`] makes a sum of several. A base that is a matrix is frozen: it gets no gradient.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Linear;
/// use kron_candle::{KronLinear, KronShape, LayerDims, ScaleRule, Scaling, Split, TrainableDelta};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::Cpu;
/// let base = Linear::new(Tensor::randn(0f32, 0.1, (64, 96), &device)?, None);
/// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
/// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
/// let layer = KronLinear::new(base.clone(), TrainableDelta::new("layer.0", shape, scaling, 1, &device)?)?;
///
/// // A new adapter has ΔW = 0, so the output is the base's.
/// let x = Tensor::randn(0f32, 1.0, (5, 96), &device)?;
/// let y = layer.forward_with(&x, None)?;
/// let difference = (&y - base.forward(&x)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
/// assert!(difference < 1e-5);
///
/// // The gradient of θ = [A | B | C] is one flat tensor.
/// let delta = &layer.deltas()[0];
/// let gradients = y.sqr()?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(delta.theta()).expect("a gradient").dims(), [shape.params()]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KronLinear {
    base: Base,
    /// Terms of a sum; none for the base alone.
    deltas: Vec<TrainableDelta>,
    /// Path in a model that serves many adapters, by which a batch finds those of the layer.
    module: Option<Arc<str>>,
}

impl std::fmt::Debug for KronLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let base = match &self.base {
            Base::Matrix(linear) => format!("{:?}", linear.weight().shape()),
            Base::Frozen(base) => format!("{base:?}"),
        };
        f.debug_struct("KronLinear").field("base", &base).field("deltas", &self.deltas).finish()
    }
}

impl From<Linear> for KronLinear {
    /// Wraps a layer without an adapter.
    fn from(base: Linear) -> Self {
        Self { base: Base::Matrix(base), deltas: Vec::new(), module: None }
    }
}

impl KronLinear {
    /// Puts an adapter on a frozen matrix.
    ///
    /// # Errors
    /// The weight is not d_out × d_in of the adapter's shape.
    pub fn new(base: Linear, delta: TrainableDelta) -> Result<Self> {
        let (weight, shape) = (base.weight().dims(), delta.op().shape);
        if weight != [shape.d_out(), shape.d_in()] {
            bail!("the weight of {} is {weight:?}, but its adapter is {shape}", delta.module());
        }
        Ok(Self { base: Base::Matrix(base), deltas: vec![delta], module: None })
    }

    /// Puts an adapter on any frozen base, such as a quantised matrix.
    ///
    /// A module of candle is not enough: [`FrozenLinear`] asks for the gradient with respect to x, too.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use candle_core::{Device, Tensor};
    /// # use kron_candle::{KronLinear, KronShape, LayerDims, QuantisedLinear, ScaleRule, Scaling, TrainableDelta};
    /// # use kron_adapter::gguf::{BlockType, Blocks};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let blocks = Blocks::new(BlockType::Q8_0, 64, 96, vec![1; 64 * 3 * 34])?; // from a GGUF file
    /// let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?;
    /// let delta = TrainableDelta::new("layer.0", shape, scaling, 1, &Device::Cpu)?;
    /// let layer = KronLinear::over(Arc::new(QuantisedLinear::new(blocks, None)?), delta)?;
    /// let y = layer.forward_with(&Tensor::ones((5, 96), candle_core::DType::F32, &Device::Cpu)?, None)?;
    /// assert_eq!(y.dims(), [5, 64]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The base has other sizes than the adapter.
    pub fn over(base: Arc<dyn FrozenLinear>, delta: TrainableDelta) -> Result<Self> {
        let (dims, shape) = (base.dims(), delta.op().shape);
        if (dims.d_out, dims.d_in) != (shape.d_out(), shape.d_in()) {
            bail!("the base of {} is {base:?}, but its adapter is {shape}", delta.module());
        }
        Ok(Self { base: Base::Frozen(base), deltas: vec![delta], module: None })
    }

    /// Wraps a frozen base without an adapter.
    pub fn frozen(base: Arc<dyn FrozenLinear>) -> Self {
        Self { base: Base::Frozen(base), deltas: Vec::new(), module: None }
    }

    /// Returns the base; `None` if its weight or bias is trained, which an adapter excludes.
    pub fn base(&self) -> Option<Arc<dyn FrozenLinear>> {
        let is_trained =
            |linear: &Linear| linear.weight().track_op() || linear.bias().is_some_and(Tensor::track_op);
        match &self.base {
            Base::Matrix(linear) if self.deltas.is_empty() && is_trained(linear) => None,
            Base::Matrix(linear) => {
                let bias = linear.bias().map(Tensor::detach);
                Some(Arc::new(Linear::new(linear.weight().detach(), bias)))
            }
            Base::Frozen(base) => Some(Arc::clone(base)),
        }
    }

    /// Gives the layer its path in a model that serves many adapters.
    pub(crate) fn of_module(self, module: &str) -> Self {
        Self { module: Some(module.into()), ..self }
    }

    /// Returns the path in a model that serves many adapters.
    pub(crate) fn module(&self) -> Option<&str> {
        self.module.as_deref()
    }

    /// Adds a term to the adapter, ΔW = Σ s·A ⊗ (B·C): all terms are one call, with one x and one y.
    ///
    /// Terms of one random stream have one dropout mask.
    ///
    /// ```
    /// # use candle_core::{Device, Tensor};
    /// # use candle_nn::Linear;
    /// # use kron_candle::{KronLinear, KronShape, LayerDims, ScaleRule, Scaling, Split, TrainableDelta};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let device = Device::Cpu;
    /// # let base = Linear::new(Tensor::randn(0f32, 0.1, (64, 96), &device)?, None);
    /// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
    /// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
    /// let term = |seed| TrainableDelta::new("layer.0", shape, scaling, seed, &device);
    /// let layer = KronLinear::new(base, term(1)?)?.add_term(term(2)?)?;
    /// let y = layer.forward_with(&Tensor::randn(0f32, 1.0, (5, 96), &device)?, None)?;
    /// let gradients = y.sqr()?.sum_all()?.backward()?;
    /// assert!(layer.deltas().iter().all(|term| gradients.get(term.theta()).is_some()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The layer has no adapter or [`AdapterGroup::MAX_TERMS`] terms, or the term has other sizes, is on another device,
    /// or is fused where the others are not.
    pub fn add_term(mut self, delta: TrainableDelta) -> Result<Self> {
        let (most, module) = (AdapterGroup::MAX_TERMS, delta.module());
        let Some(first) = self.deltas.first() else {
            bail!("{module} is to be a further term of an adapter, but the layer has none");
        };
        let (own, shape) = (first.op().shape, delta.op().shape);
        if (own.d_out(), own.d_in()) != (shape.d_out(), shape.d_in()) {
            bail!("a term of {module} is {shape}, but the first is {own}");
        }
        if delta.is_fused() != first.is_fused() || !delta.theta().device().same_device(first.theta().device())
        {
            bail!("the terms of {module} are fused on one device, or unfused on one");
        }
        if self.deltas.len() == most {
            bail!("{module} has {most} terms, which is the largest number");
        }
        self.deltas.push(delta.with_term(self.deltas.len()));
        Ok(self)
    }

    /// Returns the terms of the adapter; none for the base alone.
    pub fn deltas(&self) -> &[TrainableDelta] {
        &self.deltas
    }

    /// Computes y, … × d_out, for x, … × d_in.
    ///
    /// A key enables dropout and selects the mask, together with the layer's own stream. Without one this is
    /// [`Module::forward`], which the layer implements like any other of candle.
    ///
    /// # Errors
    /// x has another width, dtype or device than the layer.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// # use candle_nn::Linear;
    /// # use kron_candle::{Dropout, DropoutKey, KronLinear, KronShape, LayerDims, Layer, ScaleRule, Scaling};
    /// # use kron_candle::{Theta, TrainableDelta};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    /// # let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// # let trained = Layer::new("m", Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?, Theta::random(shape, 1))?;
    /// let delta = TrainableDelta::from_layer(&trained, &Device::Cpu)?.with_dropout(Dropout::new(0.5)?);
    /// let layer = KronLinear::new(base, delta)?;
    /// let x = Tensor::ones((5, 96), DType::F32, &Device::Cpu)?;
    /// let y = |key| layer.forward_with(&x, key)?.to_vec2::<f32>();
    /// let key = DropoutKey { seed: 1, offset: 0 };
    /// assert_eq!(y(Some(key))?, y(Some(key))?); // one key, one mask
    /// assert_ne!(y(Some(key))?, y(None)?); // no dropout without a key
    /// # Ok(()) }
    /// ```
    pub fn forward_with(&self, x: &Tensor, dropout: Option<DropoutKey>) -> Result<Tensor> {
        let base = match (self.base(), &self.base) {
            (Some(base), _) => base,
            // A trained weight or bias needs its gradient, which candle's own layer gives.
            (None, Base::Matrix(linear)) => return linear.forward(x),
            (None, Base::Frozen(_)) => bail!("a frozen base is not lent"),
        };
        let x = x.contiguous()?;
        let Some(delta) = self.deltas.first() else { return x.apply_op1(Frozen(base)) };
        if !delta.is_fused() {
            if dropout.is_some() && delta.op().dropout != Dropout::NONE {
                bail!(
                    "{} has dropout {} on its adapter's input, but an unfused adapter takes none",
                    delta.module(),
                    delta.op().dropout.probability()
                );
            }
            let y = x.apply_op1(Frozen(base))?;
            return self.deltas.iter().try_fold(y, |y, delta| y + unfused::added(delta, &x)?);
        }
        let call = Call::new(self.terms(dropout, 0).collect());
        x.apply_op2(&self.joined_theta()?, Fused { call, base })
    }

    /// Returns the adapter's terms, which add to one of a call's outputs.
    pub(crate) fn terms(&self, step: Option<DropoutKey>, output: usize) -> impl Iterator<Item = Term> {
        let term = move |delta: &TrainableDelta| {
            let key = step.map(|step| delta.key(step));
            Term { op: *delta.op(), key, output }
        };
        self.deltas.iter().map(term)
    }

    /// Returns θ of the terms, one after the other, in candle's graph.
    pub(crate) fn joined_theta(&self) -> Result<Tensor> {
        match self.deltas.as_slice() {
            [one] => Ok(one.theta().as_tensor().clone()),
            all => Tensor::cat(&all.iter().map(|delta| delta.theta().as_tensor()).collect::<Vec<_>>(), 0),
        }
    }

    /// Returns a plain layer with weight W + ΔW, in the dtype of W, rounded once.
    ///
    /// # Errors
    /// The base is not a matrix, or its device is not supported.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Module, Tensor};
    /// # use candle_nn::Linear;
    /// # use kron_candle::{KronLinear, KronShape, LayerDims, Layer, ScaleRule, Scaling, Theta, TrainableDelta};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    /// # let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// # let trained = Layer::new("m", Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?, Theta::random(shape, 1))?;
    /// # let layer = KronLinear::new(base, TrainableDelta::from_layer(&trained, &Device::Cpu)?)?;
    /// # let x = Tensor::ones((5, 96), DType::F32, &Device::Cpu)?;
    /// let plain: Linear = layer.merge()?;
    /// let difference = (plain.forward(&x)? - layer.forward_with(&x, None)?)?.abs()?.max_all()?;
    /// assert!(difference.to_scalar::<f32>()? < 1e-3);
    /// # Ok(()) }
    /// ```
    pub fn merge(&self) -> Result<Linear> {
        let Base::Matrix(linear) = &self.base else {
            bail!("a base that is not a matrix has no weight to merge into");
        };
        let merged = op::merge(&self.deltas, linear.weight())?;
        Ok(Linear::new(merged, linear.bias().cloned()))
    }
}

impl Module for KronLinear {
    /// Computes y without dropout.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, None)
    }
}
