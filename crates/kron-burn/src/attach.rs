//! [`Kron`]: adapters on the linear layers of a model whose names match a pattern.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn::module::{Module, Param, ParamId, Reparameterizer};
use burn::tensor::Tensor;
use kron_adapter::{Adapter, Error, Layer, Pattern, Result, Scaling};
use kron_core::{Dropout, KronShape, LayerDims, Theta};

use crate::adapter::KronAdapter;
use crate::adapters::Adapters;
use crate::tree::{Found, Tree};

/// Function from a module's path and dimensions to its adapter's shape and scale.
type Rule<'a> = Box<dyn Fn(&str, LayerDims) -> Result<(KronShape, Scaling)> + 'a>;

/// Source of a module's adapter.
enum Source<'a> {
    /// New adapters with ΔW = 0.
    New { patterns: Vec<Pattern>, rule: Rule<'a>, seed: u64 },
    /// Layers of a trained adapter.
    Trained(Adapter),
}

/// Puts adapters on the linear layers of a model.
///
/// The model's type stays, and so do its records, its optimizer and burn's `materialize`: θ rides on the layer's
/// `weight`. Call [`KronForward::forward_kron`](crate::KronForward::forward_kron) in the place of `forward` where the
/// layers are used. A `forward` that stays is correct, and computes W + ΔW for each call.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Tensor};
/// use kron_burn::{Kron, KronForward, KronShape, ScaleRule, Scaling, Split};
///
/// #[derive(Module, Debug)]
/// struct Mlp {
///     up: Linear,
///     down: Linear,
/// }
///
/// # fn main() -> kron_burn::Result<()> {
/// let device = Device::flex().autodiff();
/// let model = Mlp { up: LinearConfig::new(64, 96).init(&device), down: LinearConfig::new(96, 64).init(&device) };
/// let kron = Kron::new(&["up"], 7, |_, dims| {
///     let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?;
///     Ok((shape, Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?))
/// })?;
/// let (model, adapters) = kron.attach(model)?;
/// assert_eq!(adapters.params(), 4 * 2 + 8 * (24 + 32));
/// let y = model.down.forward_kron(model.up.forward_kron(Tensor::<2>::ones([5, 64], &device)));
/// assert_eq!(y.dims(), [5, 64]);
/// # Ok(()) }
/// ```
pub struct Kron<'a> {
    source: Source<'a>,
    dropout: Dropout,
}

impl std::fmt::Debug for Kron<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let patterns = match &self.source {
            Source::New { patterns, .. } => patterns.as_slice(),
            Source::Trained(_) => &[],
        };
        f.debug_struct("Kron").field("patterns", &patterns).field("dropout", &self.dropout).finish()
    }
}

impl<'a> Kron<'a> {
    /// Puts new adapters on the modules that match a pattern.
    ///
    /// `rule` returns shape and scale for a module's path and dimensions. Equal seeds give equal factors.
    ///
    /// # Errors
    /// A pattern is empty.
    pub fn new<P: AsRef<str>>(
        patterns: &[P],
        seed: u64,
        rule: impl Fn(&str, LayerDims) -> Result<(KronShape, Scaling)> + 'a,
    ) -> Result<Self> {
        let source = Source::New { patterns: Pattern::list(patterns)?, rule: Box::new(rule), seed };
        Ok(Self { source, dropout: Dropout::NONE })
    }

    /// Puts a trained adapter, for example from [`load`](crate::load), on the modules that it names. Its trained
    /// tensors are kept for saving; the caller puts them into the model.
    pub fn trained(adapter: Adapter) -> Self {
        Self { source: Source::Trained(adapter), dropout: Dropout::NONE }
    }

    /// Sets the dropout on every adapter's input, which calls with a key apply.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout, ..self }
    }

    /// Attaches the adapters, and freezes all other parameters but those of other reparameterizations, as burn's `Lora`
    /// does. Lazy weights are made, so read the model's record before: burn loads none into a made weight of
    /// `LinearLayout::Col`.
    ///
    /// # Errors
    /// A pattern, or a layer of the trained adapter, matches no linear layer of burn in the model; a matched layer
    /// has a reparameterization already; the rule fails; a trained adapter does not fit the weight, or has
    /// a sum of terms.
    pub fn attach<M: Module>(self, model: M) -> Result<(M, Adapters)> {
        if let Source::Trained(adapter) = &self.source {
            adapter.check_no_sums("a weight of burn")?;
        }
        let tree = Tree::of(&model);
        let mut layers = Vec::new();
        let mut made = HashMap::new();
        for found in &tree.layers {
            let Some(layer) = self.layer(found, layers.len() as u64)? else { continue };
            if let Some(name) = &found.reparameterization {
                return Err(Error::usage(format!(
                    "module {} has the reparameterization {name} already, but a weight has one",
                    found.module
                )));
            }
            let adapter =
                KronAdapter::new(layer.theta(), layer.op().with_dropout(self.dropout), &found.device)?;
            made.insert(format!("{}.weight", found.module), adapter);
            layers.push(layer);
        }
        self.check_all_used(&layers)?;
        let model = model.apply_reparameterization(Attach { made, nested: tree.nested });
        let (targets, metadata, trained_tensors) = match self.source {
            Source::New { patterns, .. } => {
                (patterns.iter().map(|p| p.text().into()).collect(), BTreeMap::new(), Vec::new())
            }
            Source::Trained(adapter) => (
                adapter.target_modules().to_vec(),
                adapter.metadata().clone(),
                adapter.trained_tensors().to_vec(),
            ),
        };
        let adapter = Adapter::new(layers)?.with_target_modules(targets)?.with_metadata(metadata)?;
        Ok((model, Adapters::new(adapter.with_trained_tensors(trained_tensors)?)))
    }

    /// Makes the layer of a module, the `index`-th of the model; `None` if its name does not match.
    fn layer(&self, found: &Found, index: u64) -> Result<Option<Layer>> {
        let (module, dims) = (&found.module, found.dims);
        let layer = match &self.source {
            Source::New { patterns, rule, seed } => {
                if !patterns.iter().any(|pattern| pattern.matches(module)) {
                    return Ok(None);
                }
                let (shape, scaling) =
                    rule(module, dims).map_err(|e| Error::usage(format!("{module}: {e}")))?;
                Layer::new(module, scaling, Theta::init(shape, seed.wrapping_add(index << 32)))?
            }
            Source::Trained(adapter) => match adapter.layer(module) {
                Some(layer) => layer.clone(),
                None => return Ok(None),
            },
        };
        let shape = layer.shape();
        if (shape.d_out(), shape.d_in()) != (dims.d_out, dims.d_in) {
            let LayerDims { d_out, d_in } = dims;
            return Err(Error::usage(format!(
                "{module} has {d_in} inputs and {d_out} outputs, but its adapter is {shape}"
            )));
        }
        Ok(Some(layer))
    }

    fn check_all_used(&self, layers: &[Layer]) -> Result<()> {
        match &self.source {
            Source::New { patterns, .. } => {
                let idle = patterns.iter().find(|p| !layers.iter().any(|layer| p.matches(layer.module())));
                idle.map_or(Ok(()), |idle| {
                    Err(Error::usage(format!("no linear layer of the model matches {:?}", idle.text())))
                })
            }
            Source::Trained(adapter) => {
                let used: HashSet<&str> = layers.iter().map(Layer::module).collect();
                let missing = adapter.layers().iter().find(|layer| !used.contains(layer.module()));
                missing.map_or(Ok(()), |missing| {
                    Err(Error::usage(format!(
                        "the model has no linear layer {}, which the adapter was trained for",
                        missing.module()
                    )))
                })
            }
        }
    }
}

/// Hands out adapters that are made already, and freezes the rest.
struct Attach {
    /// Adapters by the path of their weight.
    made: HashMap<String, KronAdapter>,
    nested: HashSet<ParamId>,
}

impl Reparameterizer for Attach {
    type Reparam = KronAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<KronAdapter>) {
        if self.nested.contains(&param.id) {
            return (param, None);
        }
        (param.set_require_grad(false), self.made.remove(path))
    }
}
