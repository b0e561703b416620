//! [`KronLinear`]: a linear layer with an optional adapter.

use std::sync::Arc;

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::Linear;
use kron_core::{Dropout, DropoutKey};

use crate::base::FrozenLinear;
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
/// LoRA, KronA and Kron-LoRA are shapes of its [`TrainableDelta`]; without one the layer is its base. A base that is
/// a matrix is frozen: it gets no gradient.
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
/// let delta = layer.delta().expect("an adapter");
/// let gradients = y.sqr()?.sum_all()?.backward()?;
/// assert_eq!(gradients.get(delta.theta()).expect("a gradient").dims(), [shape.params()]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KronLinear {
    base: Base,
    delta: Option<TrainableDelta>,
    /// Path in a model that serves many adapters, by which a batch finds those of the layer.
    module: Option<Arc<str>>,
}

impl std::fmt::Debug for KronLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let base = match &self.base {
            Base::Matrix(linear) => format!("{:?}", linear.weight().shape()),
            Base::Frozen(base) => format!("{base:?}"),
        };
        f.debug_struct("KronLinear").field("base", &base).field("delta", &self.delta).finish()
    }
}

impl From<Linear> for KronLinear {
    /// Wraps a layer without an adapter.
    fn from(base: Linear) -> Self {
        Self { base: Base::Matrix(base), delta: None, module: None }
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
        Ok(Self { base: Base::Matrix(base), delta: Some(delta), module: None })
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
        Ok(Self { base: Base::Frozen(base), delta: Some(delta), module: None })
    }

    /// Wraps a frozen base without an adapter.
    pub fn frozen(base: Arc<dyn FrozenLinear>) -> Self {
        Self { base: Base::Frozen(base), delta: None, module: None }
    }

    /// Returns the base; `None` if its weight or bias is trained, which an adapter excludes.
    pub fn base(&self) -> Option<Arc<dyn FrozenLinear>> {
        let is_trained =
            |linear: &Linear| linear.weight().track_op() || linear.bias().is_some_and(Tensor::track_op);
        match &self.base {
            Base::Matrix(linear) if self.delta.is_none() && is_trained(linear) => None,
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

    /// Returns the adapter.
    pub const fn delta(&self) -> Option<&TrainableDelta> {
        self.delta.as_ref()
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
        let Some(delta) = &self.delta else { return x.apply_op1(Frozen(base)) };
        if !delta.is_fused() {
            if dropout.is_some() && delta.op().dropout != Dropout::NONE {
                bail!(
                    "{} has dropout {} on its adapter's input, but an unfused adapter takes none",
                    delta.module(),
                    delta.op().dropout.probability()
                );
            }
            return x.apply_op1(Frozen(base))? + unfused::added(delta, &x)?;
        }
        let call = Call::new(*delta.op(), dropout.map(|key| delta.key(key)));
        x.apply_op2(delta.theta(), Fused { call, base })
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
        let (Base::Matrix(linear), Some(delta)) = (&self.base, &self.delta) else {
            return match &self.base {
                Base::Matrix(linear) => Ok(linear.clone()),
                Base::Frozen(_) => bail!("a base that is not a matrix has no weight to merge into"),
            };
        };
        let merged = op::merge(delta.op(), delta.theta(), linear.weight())?;
        Ok(Linear::new(merged, linear.bias().cloned()))
    }
}

impl Module for KronLinear {
    /// Computes y without dropout.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, None)
    }
}
