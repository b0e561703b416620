//! [`Adapter`]: the trained layers of one model, as they lie in one file.

use std::collections::{BTreeMap, HashSet};

use crate::dotted_path::{MAX_NAME, check_path};
use crate::text::{first_and_more, shown};
use crate::trained::{self, TrainedTensor};
use crate::{Error, Result};
use kron_core::{AdapterGroup, KronOp, KronShape, Scale, Theta};

/// Rule that derives s from alpha and a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// alpha / r.
    AlphaOverR,
    /// alpha / √r (rsLoRA, arXiv 2312.03732).
    AlphaOverSqrtR,
}

/// s as alpha, a rank and a rule.
///
/// The rank is a field of its own, because PEFT divides by the configured rank even
/// if the inner factor is full.
///
/// ```
/// use kron_adapter::{ScaleRule, Scaling};
///
/// let scaling = Scaling::new(16.0, 4, ScaleRule::AlphaOverSqrtR)?;
/// assert_eq!((scaling.to_string().as_str(), scaling.scale().get()), ("16/√4", 8.0));
/// # Ok::<(), kron_adapter::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    alpha: f32,
    rank: usize,
    rule: ScaleRule,
    scale: Scale,
}

impl Scaling {
    /// Applies the rule to alpha and r.
    ///
    /// # Errors
    /// Fails on a rank of 0, and on an alpha that is not finite.
    pub fn new(alpha: f32, rank: usize, rule: ScaleRule) -> Result<Self> {
        let scale = match rule {
            ScaleRule::AlphaOverR => Scale::alpha_over_r(alpha, rank)?,
            ScaleRule::AlphaOverSqrtR => Scale::alpha_over_sqrt_r(alpha, rank)?,
        };
        Ok(Self { alpha, rank, rule, scale })
    }

    /// Takes s itself: alpha = s over a rank of 1.
    ///
    /// # Errors
    /// Fails on a value that is not finite.
    pub fn plain(s: f32) -> Result<Self> {
        Self::new(s, 1, ScaleRule::AlphaOverR)
    }

    /// Value of alpha.
    pub const fn alpha(&self) -> f32 {
        self.alpha
    }
    /// Rank r in the rule.
    pub const fn rank(&self) -> usize {
        self.rank
    }
    /// Rule between alpha and r.
    pub const fn rule(&self) -> ScaleRule {
        self.rule
    }
    /// Value of s.
    pub const fn scale(&self) -> Scale {
        self.scale
    }
}

impl std::fmt::Display for Scaling {
    /// `16/8` or `16/√8`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let root = if self.rule == ScaleRule::AlphaOverSqrtR { "√" } else { "" };
        write!(f, "{}/{root}{}", self.alpha, self.rank)
    }
}

/// One adapted linear layer, or one term of a sum for it: ΔW = Σ s·A ⊗ (B·C).
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    module: String,
    /// Number among the terms of the module's sum; 0 where there is one.
    term: usize,
    scaling: Scaling,
    theta: Theta,
}

impl Layer {
    /// Makes the adapter of the module with this dotted path, such as
    /// `model.layers.0.self_attn.q_proj`.
    ///
    /// # Errors
    /// Fails unless the name consists of parts of ASCII letters, digits, `_` and `-`,
    /// joined by single dots, at most 512 bytes in all. The name becomes part of
    /// tensor names, and must not mean anything else there.
    pub fn new(module: impl Into<String>, scaling: Scaling, theta: Theta) -> Result<Self> {
        let module = module.into();
        check_path("module", &module)?;
        Ok(Self { module, term: 0, scaling, theta })
    }

    /// Returns the same layer of another module.
    ///
    /// # Errors
    /// Fails on a name that [`Layer::new`] refuses.
    pub fn renamed(&self, module: impl Into<String>) -> Result<Self> {
        Ok(Self::new(module, self.scaling, self.theta.clone())?.with_term(self.term))
    }

    /// Returns the same layer with this number among the terms of its module's sum.
    ///
    /// ```
    /// use kron_adapter::{Adapter, Layer, Scaling};
    /// use kron_core::{KronShape, LayerDims, Split, Theta};
    ///
    /// let shape = KronShape::kron(LayerDims { d_out: 12, d_in: 8 }, Split { a_out: 3, a_in: 2 }, 1)?;
    /// let term = |k| Ok(Layer::new("q", Scaling::plain(2.0)?, Theta::random(shape, k as u64))?.with_term(k));
    /// let adapter = Adapter::new((0..3).map(term).collect::<kron_adapter::Result<_>>()?)?;
    /// assert_eq!((adapter.terms("q").len(), adapter.terms("k").len()), (3, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_term(self, term: usize) -> Self {
        Self { term, ..self }
    }

    /// Dotted path of the module in the model.
    pub fn module(&self) -> &str {
        &self.module
    }
    /// Number among the terms of the module's sum, from 0.
    pub const fn term(&self) -> usize {
        self.term
    }
    /// Alpha, rank and rule.
    pub const fn scaling(&self) -> Scaling {
        self.scaling
    }
    /// The factors.
    pub const fn theta(&self) -> &Theta {
        &self.theta
    }
    /// The factors, for an optimizer.
    pub const fn theta_mut(&mut self) -> &mut Theta {
        &mut self.theta
    }
    /// Sizes of the factors.
    pub const fn shape(&self) -> &KronShape {
        self.theta.shape()
    }
    /// Returns the operation of this layer for a backend, without dropout.
    pub const fn op(&self) -> KronOp {
        KronOp::new(*self.theta.shape(), self.scaling.scale)
    }
}

/// Checks that a term of a sum, other than its first, follows the one before.
fn check_term(before: Option<&Layer>, layer: &Layer) -> Result<()> {
    let (Layer { module, term, .. }, most) = (layer, Adapter::MAX_TERMS);
    if *term == 0 {
        return Ok(());
    }
    if *term >= most {
        return Err(Error::data(format!(
            "module {module} has term {term}, but the terms are 0 to {}",
            most - 1
        )));
    }
    let Some(before) = before.filter(|before| before.module == *module && before.term + 1 == *term) else {
        return Err(Error::data(format!("term {term} of module {module} does not follow term {}", term - 1)));
    };
    let dims = |layer: &Layer| (layer.shape().d_out(), layer.shape().d_in());
    match dims(before) == dims(layer) {
        true => Ok(()),
        false => Err(Error::data(format!(
            "term {term} of module {module} is {}, but the one before is {}",
            layer.shape(),
            before.shape()
        ))),
    }
}

/// True for a name or pattern that an adapter keeps among its target modules.
pub fn is_target(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

/// The adapted layers of one model, in an order of the caller's choosing.
///
/// [`Adapter::write`] and [`Adapter::read`] keep it in one safetensors file;
/// `docs/FORMAT.md` describes that file.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    layers: Vec<Layer>,
    target_modules: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// Sorted by name.
    trained_tensors: Vec<TrainedTensor>,
}

impl Adapter {
    /// Largest number of terms of one module's sum.
    pub const MAX_TERMS: usize = AdapterGroup::MAX_TERMS;
    /// Key of `__metadata__` that belongs to the format.
    pub const RESERVED_KEY: &str = "kron-lora";
    /// Key of the metadata for the names of a trained head's classes: a JSON list, in the order of the head's rows.
    /// It travels with the trained tensors.
    pub const LABELS_KEY: &str = "labels";
    /// Module of the head that `kron-train` trains, which no model has; its tensors are `head.weight` and `head.bias`.
    pub const HEAD: &str = "head";

    /// Makes an adapter of these layers, without target names, metadata or trained tensors.
    ///
    /// # Errors
    /// Fails without a layer, on two layers of one module, and unless the terms of a sum follow each other in their
    /// order, are of one size and [`Adapter::MAX_TERMS`] at most.
    pub fn new(layers: Vec<Layer>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::data("an adapter of 0 layers adapts nothing; it has at least one"));
        }
        let mut seen = HashSet::new();
        let firsts = || layers.iter().filter(|layer| layer.term == 0);
        if let Some(twice) = firsts().find(|layer| !seen.insert(layer.module())) {
            return Err(Error::data(format!(
                "module {} occurs twice, but an adapter has one layer for each",
                twice.module
            )));
        }
        let before = std::iter::once(None).chain(layers.iter().map(Some));
        before.zip(&layers).try_for_each(|(before, layer)| check_term(before, layer))?;
        let (target_modules, metadata, trained_tensors) = Default::default();
        Ok(Self { layers, target_modules, metadata, trained_tensors })
    }

    /// Makes an adapter without a layer, for a file that changes other tensors alone.
    pub(crate) fn without_layers() -> Self {
        let (layers, target_modules, metadata, trained_tensors) = Default::default();
        Self { layers, target_modules, metadata, trained_tensors }
    }

    /// Returns an adapter of other layers with the same target names, metadata and trained tensors.
    ///
    /// # Errors
    /// Fails as [`Adapter::new`] and [`Adapter::with_trained_tensors`] do.
    pub fn with_layers(&self, layers: Vec<Layer>) -> Result<Self> {
        let (target_modules, metadata) = (self.target_modules.clone(), self.metadata.clone());
        let adapter = Self { target_modules, metadata, ..Self::new(layers)? };
        adapter.with_trained_tensors(self.trained_tensors.clone())
    }

    /// Returns the adapter with these tensors, trained beside the factors, in the place of those that it had.
    ///
    /// # Errors
    /// Fails on two tensors of one name, and on a tensor in a module that has a layer, other than its bias.
    pub fn with_trained_tensors(self, tensors: Vec<TrainedTensor>) -> Result<Self> {
        let adapted: HashSet<&str> = self.layers.iter().map(Layer::module).collect();
        let trained_tensors = trained::sorted(tensors, |module| adapted.contains(module))?;
        Ok(Self { trained_tensors, ..self })
    }

    /// Returns the adapter with the names or patterns by which its modules were chosen.
    ///
    /// # Errors
    /// Fails on a name that is empty, has more than 512 bytes, or holds a control character.
    pub fn with_target_modules(self, target_modules: Vec<String>) -> Result<Self> {
        for name in &target_modules {
            if !is_target(name) {
                return Err(Error::data(format!(
                    "target module {} is refused: it is between 1 and {MAX_NAME} bytes without control characters",
                    shown(name)
                )));
            }
        }
        Ok(Self { target_modules, ..self })
    }

    /// Returns the adapter with free text by key: base model, author, licence.
    ///
    /// # Errors
    /// Fails on the key [`Adapter::RESERVED_KEY`], which belongs to the format.
    pub fn with_metadata(self, metadata: BTreeMap<String, String>) -> Result<Self> {
        if metadata.contains_key(Self::RESERVED_KEY) {
            return Err(Error::data(format!(
                "the metadata key {} is the format's own, so free metadata cannot use it",
                Self::RESERVED_KEY
            )));
        }
        Ok(Self { metadata, ..self })
    }

    /// The layers, in order.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }
    /// Returns the factors of all layers, for changes in place. NaN and infinity are
    /// refused when the adapter is written, not here.
    pub fn thetas_mut(&mut self) -> impl Iterator<Item = &mut Theta> {
        self.layers.iter_mut().map(Layer::theta_mut)
    }
    /// Returns the layer of a module, the first term of a sum.
    pub fn layer(&self, module: &str) -> Option<&Layer> {
        self.terms(module).first()
    }
    /// Returns the terms of a module's sum: none without the module, mostly one.
    pub fn terms(&self, module: &str) -> &[Layer] {
        let of_module = |layer: &Layer| layer.module == module;
        let Some(first) = self.layers.iter().position(of_module) else { return &[] };
        let rest = &self.layers[first..];
        &rest[..rest.iter().take_while(|layer| of_module(layer)).count()]
    }
    /// Number of adapted modules.
    pub fn modules(&self) -> usize {
        self.layers.iter().filter(|layer| layer.term == 0).count()
    }
    /// Checks that no module has a sum of terms, which `holder` cannot hold.
    ///
    /// # Errors
    /// Fails on the first such module, with its number of terms.
    pub fn check_no_sums(&self, holder: &str) -> Result<()> {
        match self.layers.iter().find(|layer| layer.term > 0).map(Layer::module) {
            None => Ok(()),
            Some(module) => Err(Error::data(format!(
                "module {module} is a sum of {} terms, but {holder} takes a single term",
                self.terms(module).len()
            ))),
        }
    }
    /// Names or patterns by which the modules were chosen.
    pub fn target_modules(&self) -> &[String] {
        &self.target_modules
    }
    /// Free text by key.
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
    /// The tensors trained beside the factors, sorted by name.
    pub fn trained_tensors(&self) -> &[TrainedTensor] {
        &self.trained_tensors
    }
    /// Returns the trained tensor of this name.
    pub fn trained_tensor(&self, name: &str) -> Option<&TrainedTensor> {
        let at = self.trained_tensors.binary_search_by(|tensor| tensor.name().cmp(name)).ok()?;
        Some(&self.trained_tensors[at])
    }
    /// Names the trained tensors for a sentence, `head.bias and 1 more`; `None` without any.
    pub fn trained_summary(&self) -> Option<String> {
        first_and_more(self.trained_tensors.iter().map(TrainedTensor::name))
    }
    /// Returns the number of values of all trained tensors.
    pub fn trained_values(&self) -> usize {
        self.trained_tensors.iter().map(|tensor| tensor.values().len()).sum()
    }
    /// Returns the number of trained parameters of all layers.
    pub fn params(&self) -> usize {
        self.layers.iter().map(|layer| layer.shape().params()).sum()
    }
}
