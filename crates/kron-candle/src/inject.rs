//! Adapters by name: a model that makes its linear layers through [`Inject`]
//! gets adapters on those whose names match.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{Result, Var, bail};
use candle_nn::{Linear, VarBuilder};
use kron_adapter::{Adapter, Layer, Scaling};
use kron_core::{Dropout, KronShape};
use regex::Regex;

use crate::{Delta, KronLinear};

/// Names of modules: `q_proj`, `attention.self.query`, `*.attention.*`.
///
/// A pattern matches a dotted path, or what follows one of its dots, as a
/// whole; `*` is any run of characters, dots included.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// # Errors
    /// An empty pattern.
    pub fn new(text: &str) -> Result<Self> {
        if text.is_empty() {
            bail!("a pattern for module names is empty, but it names at least one module");
        }
        let parts: Vec<String> = text.split('*').map(regex::escape).collect();
        let regex =
            Regex::new(&format!(r"^(?:.*\.)?{}$", parts.join(".*"))).map_err(candle_core::Error::wrap)?;
        Ok(Self { text: text.into(), regex })
    }

    /// Whether a module's dotted path is meant.
    pub fn matches(&self, module: &str) -> bool {
        self.regex.is_match(module)
    }
}

/// Shape and scale for a module's path, d_out and d_in.
type Rule<'a> = Box<dyn Fn(&str, usize, usize) -> kron_adapter::Result<(KronShape, Scaling)> + 'a>;

/// Where a module's adapter comes from.
enum Source<'a> {
    /// A new one, by shape and scale: ΔW = 0.
    New { rule: Rule<'a>, seed: u64 },
    /// The layers of a file.
    Trained(Adapter),
    /// None: the model stays as it is.
    Nothing,
}

/// Gives adapters to the linear layers that a model makes. A ready-made model of candle-transformers builds
/// its layers inside itself and hands none out, so it takes no adapter: its code has to call [`Inject::linear`].
///
/// ```
/// # use candle_core::{DType, Device, Result};
/// # use candle_nn::{VarBuilder, VarMap};
/// # use kron_candle::{Inject, KronShape, LayerDims, ScaleRule, Scaling, Split};
/// # fn main() -> Result<()> {
/// # let weights = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let inject = Inject::new(&["q_proj", "v_proj"], 7, |_, d_out, d_in| {
///     let shape = KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 4, a_in: 2 }, 8)?;
///     Ok((shape, Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?))
/// })?;
/// let q = inject.linear(64, 64, true, vb.pp("layer.0.q_proj"))?;
/// let k = inject.linear(64, 64, true, vb.pp("layer.0.k_proj"))?;
/// let v = inject.linear(64, 64, true, vb.pp("layer.0.v_proj"))?;
/// assert!(q.delta().is_some() && k.delta().is_none() && v.delta().is_some());
/// assert_eq!(inject.finish()?.params(), 2 * (4 * 2 + 8 * (16 + 32)));
/// # Ok(()) }
/// ```
pub struct Inject<'a> {
    patterns: Vec<Pattern>,
    source: Source<'a>,
    dropout: Dropout,
    fused: bool,
    made: RefCell<Vec<Delta>>,
}

impl std::fmt::Debug for Inject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inject").field("patterns", &self.patterns).field("made", &self.made).finish()
    }
}

impl<'a> Inject<'a> {
    /// New adapters on the modules that match a pattern. `rule` gives shape and
    /// scale for a module's path, d_out and d_in; equal seeds give equal factors.
    ///
    /// # Errors
    /// An empty pattern.
    pub fn new<P: AsRef<str>>(
        patterns: &[P],
        seed: u64,
        rule: impl Fn(&str, usize, usize) -> kron_adapter::Result<(KronShape, Scaling)> + 'a,
    ) -> Result<Self> {
        let patterns = patterns.iter().map(|p| Pattern::new(p.as_ref())).collect::<Result<_>>()?;
        Ok(Self::from(patterns, Source::New { rule: Box::new(rule), seed }))
    }

    /// The adapters of a file or folder, as [`load`](crate::load) reads it, on the modules that it names.
    pub fn trained(adapter: Adapter) -> Self {
        Self::from(Vec::new(), Source::Trained(adapter))
    }

    /// No adapter anywhere.
    pub fn nothing() -> Self {
        Self::from(Vec::new(), Source::Nothing)
    }

    fn from(patterns: Vec<Pattern>, source: Source<'a>) -> Self {
        Self { patterns, source, dropout: Dropout::NONE, fused: true, made: RefCell::default() }
    }

    /// The same with dropout on every adapter's input.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout, ..self }
    }

    /// The same with adapters that are [`unfused`](Delta::unfused).
    pub fn unfused(self) -> Self {
        Self { fused: false, ..self }
    }

    /// The layer `weight` (and `bias`) of a builder, by the builder's prefix,
    /// with an adapter where its name is meant.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, and what the rule refuses.
    pub fn linear(&self, d_in: usize, d_out: usize, bias: bool, vb: VarBuilder) -> Result<KronLinear> {
        let linear = candle_nn::linear_b(d_in, d_out, bias, vb.clone())?;
        self.wrap(linear, &vb.prefix())
    }

    /// An adapter on a layer that exists, where its name is meant.
    ///
    /// # Errors
    /// What the rule refuses, and a weight that a trained adapter does not fit.
    pub fn wrap(&self, base: Linear, module: &str) -> Result<KronLinear> {
        let (d_out, d_in) = base.weight().dims2()?;
        let device = base.weight().device().clone();
        let index = self.made.borrow().len() as u64;
        let delta = match &self.source {
            Source::New { rule, seed } if self.patterns.iter().any(|p| p.matches(module)) => {
                let (shape, scaling) = rule(module, d_out, d_in)
                    .map_err(|e| candle_core::Error::msg(format!("{module}: {e}")))?;
                Delta::new(module, shape, scaling, seed.wrapping_add(index << 32), &device)?
            }
            Source::Trained(adapter) => match adapter.layer(module) {
                Some(layer) => Delta::from_layer(layer, &device)?,
                None => return Ok(base.into()),
            },
            _ => return Ok(base.into()),
        };
        let delta = delta.with_dropout(self.dropout).with_stream(index);
        let delta = if self.fused { delta } else { delta.unfused() };
        self.made.borrow_mut().push(delta.clone());
        KronLinear::new(base, delta)
    }

    /// All adapters, in the order in which the model made its layers.
    ///
    /// # Errors
    /// A pattern, or a layer of the file, that met no module of the model.
    pub fn finish(self) -> Result<Adapters> {
        let deltas = self.made.into_inner();
        let idle = self.patterns.iter().find(|p| !deltas.iter().any(|d| p.matches(d.module())));
        if let Some(idle) = idle {
            bail!("no linear layer of the model matches {:?}", idle.text);
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
        let (targets, metadata) = match self.source {
            Source::Trained(adapter) => (adapter.target_modules().to_vec(), adapter.metadata().clone()),
            _ => (self.patterns.into_iter().map(|p| p.text).collect(), BTreeMap::new()),
        };
        Ok(Adapters { deltas, targets, metadata })
    }
}

/// The adapters of one model.
#[derive(Clone, Debug)]
pub struct Adapters {
    deltas: Vec<Delta>,
    targets: Vec<String>,
    /// What a file says of its model.
    metadata: BTreeMap<String, String>,
}

impl Adapters {
    /// In the order of the model's layers.
    pub fn deltas(&self) -> &[Delta] {
        &self.deltas
    }

    /// Every θ.
    pub fn vars(&self) -> Vec<Var> {
        self.deltas.iter().map(|d| d.theta().clone()).collect()
    }

    /// Trained numbers.
    pub fn params(&self) -> usize {
        self.deltas.iter().map(|d| d.op().shape.params()).sum()
    }

    /// The factors as they are now.
    ///
    /// # Errors
    /// No adapter at all.
    pub fn to_adapter(&self) -> Result<Adapter> {
        let layers = self.deltas.iter().map(Delta::to_layer).collect::<Result<Vec<Layer>>>()?;
        Adapter::new(layers)
            .and_then(|adapter| adapter.with_target_modules(self.targets.clone()))
            .and_then(|adapter| adapter.with_metadata(self.metadata.clone()))
            .map_err(candle_core::Error::wrap)
    }
}
