//! [`Inject`]: adapters on the layers of a model whose names match a pattern.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{Device, Error, Result, bail};
use candle_nn::{Linear, VarBuilder};
use kron_adapter::{Adapter, Pattern, Scaling};
use kron_core::{Dropout, KronShape, LayerDims};

use crate::adapters::Adapters;
use crate::base::FrozenLinear;
use crate::error::of_adapter;
use crate::linear::KronLinear;
use crate::served::ServedModules;
use crate::trainable_delta::TrainableDelta;

/// Function from a module's path and dimensions to its adapter's shape and scale.
type Rule<'a> = Box<dyn Fn(&str, LayerDims) -> kron_adapter::Result<(KronShape, Scaling)> + 'a>;

/// Source of a module's adapter.
enum Source<'a> {
    /// New adapters with ΔW = 0.
    New { rule: Rule<'a>, seed: u64 },
    /// Layers of a trained adapter.
    Trained(Adapter),
    /// No adapters.
    Nothing,
    /// No adapters of the layers' own: a batch brings those of its texts.
    Served,
}

/// Puts adapters on the linear layers of a model while the model is built.
///
/// The model's code has to make its layers by [`Inject::linear`] or [`Inject::wrap`]. Those of
/// [`models`](crate::models) do; models of candle-transformers build their layers internally.
///
/// ```
/// # use candle_core::{DType, Device, Result};
/// # use candle_nn::{VarBuilder, VarMap};
/// # use kron_candle::{Inject, KronShape, ScaleRule, Scaling, Split};
/// # fn main() -> Result<()> {
/// # let weights = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let inject = Inject::new(&["q_proj", "v_proj"], 7, |_, dims| {
///     let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?;
///     Ok((shape, Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?))
/// })?;
/// let q = inject.linear(64, 64, true, vb.pp("layer.0.q_proj"))?;
/// let k = inject.linear(64, 64, true, vb.pp("layer.0.k_proj"))?;
/// let v = inject.linear(64, 64, true, vb.pp("layer.0.v_proj"))?;
/// assert_eq!([&q, &k, &v].map(|layer| layer.deltas().len()), [1, 0, 1]);
/// assert_eq!(inject.finish()?.params(), 2 * (4 * 2 + 8 * (16 + 32)));
/// # Ok(()) }
/// ```
pub struct Inject<'a> {
    patterns: Vec<Pattern>,
    source: Source<'a>,
    dropout: Dropout,
    fused: bool,
    /// Terms of each new adapter's sum.
    terms: usize,
    made: RefCell<Vec<TrainableDelta>>,
    /// Sizes of the layers made for serving, by module.
    served: RefCell<HashMap<String, LayerDims>>,
}

impl std::fmt::Debug for Inject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inject").field("patterns", &self.patterns).field("made", &self.made).finish()
    }
}

impl<'a> Inject<'a> {
    /// Puts new adapters on the modules that match a pattern.
    ///
    /// `rule` returns shape and scale for a module's path and dimensions. Equal seeds give equal factors.
    ///
    /// # Errors
    /// A pattern is empty.
    pub fn new<P: AsRef<str>>(
        patterns: &[P],
        seed: u64,
        rule: impl Fn(&str, LayerDims) -> kron_adapter::Result<(KronShape, Scaling)> + 'a,
    ) -> Result<Self> {
        let patterns = Pattern::list(patterns).map_err(Error::wrap)?;
        Ok(Self::from(patterns, Source::New { rule: Box::new(rule), seed }))
    }

    /// Puts a trained adapter, for example from `load`, on the modules that it names. Its trained tensors are kept
    /// for saving; the caller puts them into the model.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{Adapter, Inject, KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
    /// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
    /// let layer = Layer::new("layer.0.q_proj", scaling, Theta::random(shape, 1))?;
    /// let inject = Inject::trained(Adapter::new(vec![layer])?);
    /// let base = || Ok::<_, candle_core::Error>(Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None));
    /// assert_eq!(inject.wrap(base()?, "layer.0.q_proj")?.deltas().len(), 1);
    /// assert_eq!(inject.wrap(base()?, "layer.0.k_proj")?.deltas().len(), 0);
    /// # Ok(()) }
    /// ```
    pub fn trained(adapter: Adapter) -> Self {
        Self::from(Vec::new(), Source::Trained(adapter))
    }

    /// Leaves all layers without an adapter.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Result, Tensor};
    /// # use candle_nn::Linear;
    /// # fn main() -> Result<()> {
    /// let inject = kron_candle::Inject::nothing();
    /// let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    /// assert!(inject.wrap(base, "layer.0")?.deltas().is_empty());
    /// # Ok(()) }
    /// ```
    pub fn nothing() -> Self {
        Self::from(Vec::new(), Source::Nothing)
    }

    /// Makes every layer for texts with adapters of their own; [`Inject::finish_serving`] returns the layers.
    ///
    /// Without a batch the model is its base. The example `04_serve` has a thousand adapters.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{Adapter, FilePool, IfExists, Inject, KronShape, Layer, LayerDims, ScaleRule, Scaling, Theta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let file = folder.path().join("ada.safetensors");
    /// let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// let layer = Layer::new("q_proj", Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?, Theta::random(shape, 1))?;
    /// Adapter::new(vec![layer])?.write(&file, IfExists::Refuse)?;
    ///
    /// let inject = Inject::serving();
    /// let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    /// let q = inject.wrap(base, "q_proj")?; // in the model's own code
    /// let served = inject.finish_serving()?;
    /// let pool = FilePool::new(1 << 20);
    /// let batch = served.batch(&[pool.get(&file)?], &[-1, 0, -1])?;
    /// assert_eq!((batch.texts(), batch.adapters().len()), (3, 1));
    /// # let _ = q;
    /// # Ok(()) }
    /// ```
    pub fn serving() -> Self {
        Self::from(Vec::new(), Source::Served)
    }

    fn from(patterns: Vec<Pattern>, source: Source<'a>) -> Self {
        Self {
            patterns,
            source,
            dropout: Dropout::NONE,
            fused: true,
            terms: 1,
            made: RefCell::default(),
            served: RefCell::default(),
        }
    }

    /// Sets the dropout on every adapter's input.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout, ..self }
    }

    /// Makes every new adapter a sum of terms of the rule's shape and scale, ΔW = Σ s·A ⊗ (B·C), with initial values of
    /// their own and ΔW = 0. One dropout mask is that of all terms of a layer.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// # use candle_nn::Linear;
    /// use kron_candle::{Inject, Method, Split};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let method = Method::Kron { split: Split { a_out: 4, a_in: 4 }, rank: 2 };
    /// let inject = Inject::of_method(&["q_proj"], 1, method, 8.0)?.with_terms(3)?;
    /// let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    /// assert_eq!(inject.wrap(base, "0.q_proj")?.deltas().len(), 3);
    /// assert_eq!(inject.finish()?.to_adapter()?.terms("0.q_proj").len(), 3);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The number is not from 1 to [`Adapter::MAX_TERMS`].
    pub fn with_terms(self, terms: usize) -> Result<Self> {
        match terms {
            1..=Adapter::MAX_TERMS => Ok(Self { terms, ..self }),
            _ => bail!("a sum has {terms} terms, but it has 1 to {}", Adapter::MAX_TERMS),
        }
    }

    /// Makes the adapters [`unfused`](TrainableDelta::unfused).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{Adapter, Inject, KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
    /// let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;
    /// let layer = Layer::new("layer.0.q_proj", scaling, Theta::random(shape, 1))?;
    /// let adapter = Adapter::new(vec![layer])?;
    /// let y = |inject: Inject| {
    ///     let base = Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None);
    ///     let x = Tensor::ones((2, 96), DType::F32, &Device::Cpu)?;
    ///     inject.wrap(base, "layer.0.q_proj")?.forward_with(&x, None)
    /// };
    /// let (fused, unfused) = (y(Inject::trained(adapter.clone()))?, y(Inject::trained(adapter).unfused())?);
    /// assert!((fused - unfused)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4); // equal up to rounding
    /// # Ok(()) }
    /// ```
    pub fn unfused(self) -> Self {
        Self { fused: false, ..self }
    }

    /// Makes the linear layer at a builder's prefix, with an adapter if the prefix matches.
    ///
    /// The sizes have the order of `candle_nn::linear`: input first, then output.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the rule fails.
    pub fn linear(&self, d_in: usize, d_out: usize, bias: bool, vb: VarBuilder) -> Result<KronLinear> {
        let linear = candle_nn::linear_b(d_in, d_out, bias, vb.clone())?;
        self.wrap(linear, &vb.prefix())
    }

    /// Wraps an existing layer, with an adapter if the module's name matches.
    ///
    /// # Errors
    /// The rule fails, or a trained adapter does not fit the weight.
    pub fn wrap(&self, base: Linear, module: &str) -> Result<KronLinear> {
        let (d_out, d_in) = base.weight().dims2()?;
        let dims = LayerDims { d_out, d_in };
        let mut deltas = self.deltas(module, dims, base.weight().device())?.into_iter();
        match deltas.next() {
            Some(first) => deltas.try_fold(KronLinear::new(base, first)?, KronLinear::add_term),
            None => Ok(self.record(base.into(), module, dims)),
        }
    }

    /// Wraps any frozen base whose operands are on `device`, with an adapter if the module's name matches.
    ///
    /// # Errors
    /// The rule fails, or a trained adapter does not fit the base.
    pub fn wrap_frozen(
        &self,
        base: Arc<dyn FrozenLinear>,
        module: &str,
        device: &Device,
    ) -> Result<KronLinear> {
        let dims = base.dims();
        let mut deltas = self.deltas(module, dims, device)?.into_iter();
        match deltas.next() {
            Some(first) => deltas.try_fold(KronLinear::over(base, first)?, KronLinear::add_term),
            None => Ok(self.record(KronLinear::frozen(base), module, dims)),
        }
    }

    /// Notes a layer that is made for serving.
    fn record(&self, layer: KronLinear, module: &str, dims: LayerDims) -> KronLinear {
        if !matches!(self.source, Source::Served) {
            return layer;
        }
        self.served.borrow_mut().insert(module.to_owned(), dims);
        layer.of_module(module)
    }

    /// Makes the terms of a module's adapter; none if its name does not match.
    fn deltas(&self, module: &str, dims: LayerDims, device: &Device) -> Result<Vec<TrainableDelta>> {
        let first = self.made.borrow().len() as u64;
        let deltas = match &self.source {
            Source::New { rule, seed } if self.patterns.iter().any(|p| p.matches(module)) => {
                let (shape, scaling) = rule(module, dims).map_err(|e| of_adapter(e.about(module)))?;
                let term = |(index, term)| {
                    let seed = seed.wrapping_add(index << 32);
                    Ok(TrainableDelta::new(module, shape, scaling, seed, device)?.with_term(term))
                };
                (first..).zip(0..self.terms).map(term).collect::<Result<Vec<_>>>()?
            }
            Source::Trained(adapter) => {
                let terms = adapter.terms(module).iter();
                terms.map(|layer| TrainableDelta::from_layer(layer, device)).collect::<Result<_>>()?
            }
            _ => Vec::new(),
        };
        let configured = deltas.into_iter().map(|delta| {
            let delta = delta.with_dropout(self.dropout).with_stream(first);
            if self.fused { delta } else { delta.unfused() }
        });
        let deltas: Vec<_> = configured.collect();
        self.made.borrow_mut().extend(deltas.iter().cloned());
        Ok(deltas)
    }

    /// Returns the layers of a model that serves many adapters.
    ///
    /// # Errors
    /// The adapters are not those of batches, or the model has made no linear layer.
    pub fn finish_serving(self) -> Result<ServedModules> {
        let served = self.served.into_inner();
        if !matches!(self.source, Source::Served) {
            bail!("the model's layers have adapters of their own, but serving needs Inject::serving");
        }
        if served.is_empty() {
            bail!("the model has made no linear layer, but serving needs at least one");
        }
        Ok(ServedModules::new(served))
    }

    /// Returns all adapters, in the order in which the model made its layers.
    ///
    /// # Errors
    /// A pattern, or a layer of the trained adapter, matches no module of the model.
    pub fn finish(self) -> Result<Adapters> {
        let deltas = self.made.into_inner();
        let idle = self.patterns.iter().find(|p| !deltas.iter().any(|d| p.matches(d.module())));
        if let Some(idle) = idle {
            bail!("no linear layer of the model matches {:?}", idle.text());
        }
        if let Source::Trained(adapter) = &self.source {
            let missing = adapter.layers().iter().find(|l| !deltas.iter().any(|d| d.module() == l.module()));
            if let Some(missing) = missing {
                bail!(
                    "the model has no linear layer {}, which the adapter was trained for",
                    missing.module()
                );
            }
        }
        let (targets, metadata, trained_tensors) = match self.source {
            Source::Trained(adapter) => (
                adapter.target_modules().to_vec(),
                adapter.metadata().clone(),
                adapter.trained_tensors().to_vec(),
            ),
            _ => (self.patterns.iter().map(|p| p.text().into()).collect(), BTreeMap::new(), Vec::new()),
        };
        Ok(Adapters::new(deltas, targets, metadata, trained_tensors))
    }
}
