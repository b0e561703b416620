//! Adapters of a model from the settings of a method.

use std::collections::BTreeMap;

use kron_adapter::plan::{AdapterPlan, Budget, DEFAULT_SPLIT, Family, Linear, Method as Rule, Model, search};
use kron_candle::{Adapter, Dropout, Inject, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Split};

use crate::config::{AdapterConfig, Method};
use crate::error::{Result, invalid};
use crate::model::{Weights, build};

/// Largest rank that a limit of parameters gives, as of `adapter.rank`.
const MAX_RANK: usize = 1 << 16;
/// Largest number of an adapter's parameters, relative to the model's elements.
const MAX_RATIO: u128 = 16;

/// Shape rule, scale and dropout of all adapters of a model.
#[derive(Clone, Debug)]
pub struct AdapterRule {
    rule: Rule,
    /// Description of the shapes that the layers get.
    shapes: String,
    /// Terms of each layer's sum.
    terms: usize,
    scaling: Scaling,
    dropout: Dropout,
    fused: bool,
}

impl AdapterRule {
    /// Resolves the settings on this model; `None` for methods without adapters.
    ///
    /// # Errors
    /// A target matches no layer, or a shape is invalid.
    pub fn new(config: &AdapterConfig, weights: &Weights) -> Result<Option<Self>> {
        let layers = linears(&config.targets, weights)?.into_iter();
        let layers = layers.map(|(name, dims)| Linear::new(name, dims, 1));
        let layers = layers.collect::<kron_adapter::Result<_>>()?;
        let model = Model::new("the model", weights.hidden(), layers, 0)?;
        let split = match (config.a_out, config.a_in) {
            (0, 0) => None,
            (a_out, a_in) if a_out > 0 && a_in > 0 => Some(Split { a_out, a_in }),
            (a_out, a_in) => {
                return Err(invalid(format!(
                    "a_out is {a_out} and a_in {a_in}, but both are set or neither"
                )));
            }
        };
        let rank = config.rank;
        let factor = (config.factor > 0).then_some(config.factor);
        let rule = match config.method {
            Method::None | Method::Head | Method::Full => return Ok(None),
            Method::Lora => Rule::Lora { rank },
            Method::Kron => Rule::Kron { split: split.unwrap_or(DEFAULT_SPLIT), rank },
            Method::Krona => Rule::Krona { split },
            Method::Lokr => Rule::Lokr { factor, rank },
        };
        let terms = config.terms;
        let rule = match config.match_params {
            0 => rule,
            limit => matched(&model, rule, limit, terms as u64)?,
        };
        let rank = match rule {
            Rule::Kron { rank, .. } | Rule::Lora { rank } | Rule::Lokr { rank, .. } => rank,
            Rule::Krona { .. } => rank,
        };
        let alpha = if config.scale > 0.0 { config.scale * rank as f32 } else { config.alpha };
        let scaling = Scaling::new(alpha, rank, ScaleRule::AlphaOverR)?;
        let (dropout, fused) = (Dropout::new(config.dropout)?, config.fused);
        // Before anything is allocated: a rank may be far beyond the layers' sizes.
        let params = terms as u128 * AdapterPlan::new(&model, rule)?.adapter_params();
        let elements = weights.elements();
        if params > MAX_RATIO * elements {
            return Err(invalid(format!(
                "adapters of {rule} have {params} parameters, but at most {MAX_RATIO} times the {elements} of the \
                 model"
            )));
        }
        Ok(Some(Self { rule, shapes: shapes(rule, &model)?, terms, scaling, dropout, fused }))
    }

    /// Makes new adapters with ΔW = 0.
    ///
    /// # Errors
    /// A target is empty.
    pub fn inject(&self, targets: &[String], seed: u64) -> Result<Inject<'static>> {
        let (rule, scaling) = (self.rule, self.scaling);
        let shape = move |_: &str, dims: LayerDims| -> kron_adapter::Result<(KronShape, Scaling)> {
            Ok((rule.fit(dims)?.shape, scaling))
        };
        Ok(self.configure(Inject::new(targets, seed, shape)?.with_terms(self.terms)?))
    }

    /// Continues with the factors of a trained adapter.
    pub fn trained(&self, adapter: Adapter) -> Inject<'static> {
        self.configure(Inject::trained(adapter))
    }

    fn configure<'a>(&self, inject: Inject<'a>) -> Inject<'a> {
        let inject = inject.with_dropout(self.dropout);
        if self.fused { inject } else { inject.unfused() }
    }

    /// Describes the shapes as in `kron 4×2 r 8, s = 32/8` or `3 terms of kron 4×2 r 8, s = 32/8`, followed by
    /// `, unfused` if it is.
    pub fn describe(&self) -> String {
        let unfused = if self.fused { "" } else { ", unfused" };
        let terms = if self.terms == 1 { String::new() } else { format!("{} terms of ", self.terms) };
        format!("{terms}{}, s = {}{unfused}", self.shapes, self.scaling)
    }
}

/// Describes a rule by the shapes that it gives: a side of A that does not divide a layer is smaller there.
fn shapes(rule: Rule, model: &Model) -> Result<String> {
    let (Rule::Kron { split, .. } | Rule::Krona { split: Some(split) }) = rule else {
        return Ok(rule.to_string());
    };
    let mut layers: BTreeMap<(usize, usize), u32> = BTreeMap::new();
    for linear in model.linears() {
        let shape = rule.fit(linear.dims())?.shape;
        *layers.entry((shape.a_out(), shape.a_in())).or_default() += linear.count();
    }
    let with = |split: Split| match rule {
        Rule::Kron { rank, .. } => Rule::Kron { split, rank },
        _ => Rule::Krona { split: Some(split) },
    };
    let mut taken = layers.into_iter().map(|((a_out, a_in), n)| (Split { a_out, a_in }, n));
    match (taken.next(), taken.len()) {
        (Some((only, _)), 0) => Ok(with(only).to_string()),
        (first, _) => {
            let each = first.into_iter().chain(taken).map(|(split, n)| format!("{split} on {n} layers"));
            Ok(format!("{} (A {})", with(split), each.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// Lists the linear layers that match the targets.
fn linears(targets: &[String], weights: &Weights) -> Result<Vec<(String, LayerDims)>> {
    let scaling = Scaling::plain(1.0)?;
    let probe = Inject::new(targets, 0, |_, dims| Ok((KronShape::lora(dims, 1)?, scaling)))?;
    build(weights, &probe)?;
    let adapters = probe.finish()?;
    let linears = adapters.deltas().iter().map(|delta| {
        let shape = delta.op().shape;
        (delta.module().to_owned(), LayerDims { d_out: shape.d_out(), d_in: shape.d_in() })
    });
    Ok(linears.collect())
}

/// Returns the rule at the largest rank for which so many terms are within a limit of parameters.
///
/// KronA has no rank: of the shapes with nine tenths of the most parameters within the limit, it takes the one whose
/// ΔW has the highest rank.
///
/// # Errors
/// The smallest such adapter has more.
fn matched(model: &Model, rule: Rule, all: u64, terms: u64) -> Result<Rule> {
    let limit = all / terms;
    let refused = |smallest: u128| {
        let (limit, rule, smallest) = (all, rule.with_rank(1), smallest * u128::from(terms));
        invalid(format!(
            "adapter.match_params is {limit}, but the smallest adapter of {rule} has {smallest} parameters"
        ))
    };
    if let Rule::Krona { .. } = rule {
        let within = search(model, Family::Krona, Budget::AtMost(limit))?;
        let most = within.iter().map(|c| c.trained_params).max().unwrap_or(0);
        let near = within.iter().filter(|c| 10 * c.trained_params >= 9 * most);
        return match near.max_by_key(|c| (c.rank_sum, c.trained_params)) {
            Some(choice) => Ok(choice.method),
            None => {
                let all = search(model, Family::Krona, Budget::Nearest(0))?;
                Err(refused(all.first().map_or(0, |c| c.trained_params)))
            }
        };
    }
    let params =
        |rank| -> Result<u128> { Ok(AdapterPlan::new(model, rule.with_rank(rank))?.adapter_params()) };
    let mut best: Option<(u128, usize)> = None;
    for rank in 1..=MAX_RANK {
        let n = params(rank)?;
        let fits = n <= limit.into();
        if fits && best.is_none_or(|(most, _)| n > most) {
            best = Some((n, rank));
        }
        // A high rank makes LoKr's inner factor full, which may have fewer parameters.
        let may_shrink = matches!(rule, Rule::Lokr { .. }) && rank <= model.hidden();
        if !fits && !may_shrink {
            break;
        }
    }
    match best {
        Some((_, rank)) => Ok(rule.with_rank(rank)),
        None => Err(refused(params(1)?)),
    }
}
