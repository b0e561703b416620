//! [`KronLinear`]: a linear layer with or without an adapter.

use std::sync::Arc;

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::Linear;
use kron_core::{Dropout, DropoutKey};

use crate::Delta;
use crate::op::{self, Added, Call, Fused};
use crate::unfused;

/// What the adapter is added to.
#[derive(Clone)]
enum Base {
    /// W and bias, which the fused op multiplies itself.
    Matrix(Linear),
    /// Anything that maps … × d_in to … × d_out.
    Module(Arc<dyn Module + Send + Sync>),
}

/// y = base(x) + s·x·(A ⊗ (B·C))ᵀ.
///
/// LoRA, KronA and Kron-LoRA are shapes of its [`Delta`]; without one it is
/// the base. With a matrix for a base, that matrix gets no gradient.
#[derive(Clone)]
pub struct KronLinear {
    base: Base,
    delta: Option<Delta>,
}

impl std::fmt::Debug for KronLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let base = match &self.base {
            Base::Matrix(linear) => format!("{:?}", linear.weight().shape()),
            Base::Module(_) => "a module".into(),
        };
        f.debug_struct("KronLinear").field("base", &base).field("delta", &self.delta).finish()
    }
}

impl From<Linear> for KronLinear {
    /// The layer as it is, with whatever its weights are.
    fn from(base: Linear) -> Self {
        Self { base: Base::Matrix(base), delta: None }
    }
}

impl KronLinear {
    /// An adapter over a frozen matrix.
    ///
    /// # Errors
    /// A weight that is not d_out × d_in of the adapter's shape.
    pub fn new(base: Linear, delta: Delta) -> Result<Self> {
        let (weight, shape) = (base.weight().dims(), delta.op().shape);
        if weight != [shape.d_out(), shape.d_in()] {
            bail!("the weight of {} is {weight:?}, but its adapter is {shape}", delta.module());
        }
        Ok(Self { base: Base::Matrix(base), delta: Some(delta) })
    }

    /// An adapter over any module, such as a quantised layer. Its output is
    /// copied once, because candle's ops cannot write into their inputs.
    pub fn over(base: Arc<dyn Module + Send + Sync>, delta: Delta) -> Self {
        Self { base: Base::Module(base), delta: Some(delta) }
    }

    /// The adapter.
    pub const fn delta(&self) -> Option<&Delta> {
        self.delta.as_ref()
    }

    /// y, … × d_out, for x, … × d_in. A key switches dropout on and names its
    /// mask; the layer's own stream is added to it.
    ///
    /// # Errors
    /// An x of another width, dtype or device.
    pub fn forward(&self, x: &Tensor, dropout: Option<DropoutKey>) -> Result<Tensor> {
        let Some(delta) = &self.delta else {
            return match &self.base {
                Base::Matrix(linear) => linear.forward(x),
                Base::Module(module) => module.forward(x),
            };
        };
        let x = x.contiguous()?;
        if !delta.is_fused() {
            return self.unfused(delta, &x, dropout);
        }
        let call = Call::new(*delta.op(), dropout.map(|key| delta.key(key)));
        match &self.base {
            Base::Matrix(linear) => {
                let (weight, bias) = (linear.weight().detach(), linear.bias().map(Tensor::detach));
                x.apply_op2(delta.theta(), Fused { call, weight, bias })
            }
            Base::Module(module) => {
                module.forward(&x)?.contiguous()?.apply_op3(&x, delta.theta(), Added(call))
            }
        }
    }

    /// base(x), and the adapter's share in memory of its own.
    fn unfused(&self, delta: &Delta, x: &Tensor, dropout: Option<DropoutKey>) -> Result<Tensor> {
        if dropout.is_some() && delta.op().dropout != Dropout::NONE {
            bail!(
                "{} has dropout {} on its adapter's input, but an unfused adapter takes none",
                delta.module(),
                delta.op().dropout.probability()
            );
        }
        let base = match &self.base {
            Base::Matrix(linear) => {
                Linear::new(linear.weight().detach(), linear.bias().map(Tensor::detach)).forward(x)
            }
            Base::Module(module) => module.forward(x),
        };
        base? + unfused::added(delta, x)?
    }

    /// A plain layer of weight W + ΔW, in W's dtype, rounded once.
    ///
    /// # Errors
    /// A base that is not a matrix, or one on a device where no adapter runs.
    pub fn merge(&self) -> Result<Linear> {
        let (Base::Matrix(linear), Some(delta)) = (&self.base, &self.delta) else {
            return match &self.base {
                Base::Matrix(linear) => Ok(linear.clone()),
                Base::Module(_) => bail!("a base that is no matrix has no weight to merge into"),
            };
        };
        let merged = op::merge(delta.op(), delta.theta(), linear.weight())?;
        Ok(Linear::new(merged, linear.bias().cloned()))
    }
}

impl Module for KronLinear {
    /// Without dropout.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        KronLinear::forward(self, x, None)
    }
}
