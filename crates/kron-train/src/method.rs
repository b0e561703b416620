//! From a method's settings to the adapters of a model.

use kron_adapter::plan::{Budget, Family, Linear, Method as Rule, Model, Plan, paper_split, search};
use kron_candle::{Adapter, Dropout, Inject, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Split};

use crate::config::{AdapterConfig, Method};
use crate::error::{Result, invalid};
use crate::model::{Weights, build};

/// A rule for the shapes, with the scale that goes with it.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    rule: Rule,
    scaling: Scaling,
    dropout: Dropout,
    fused: bool,
}

impl Planned {
    /// What the settings ask for on this model; `None` for methods without adapters.
    ///
    /// # Errors
    /// Targets that match no layer, and shapes that are not legal.
    pub fn new(config: &AdapterConfig, weights: &Weights) -> Result<Option<Self>> {
        let model = linears(config, weights)?;
        let split = match (config.a_in, config.a_out) {
            (0, 0) => None,
            (a_in, a_out) if a_in > 0 && a_out > 0 => Some(Split { a_in, a_out }),
            (a_in, a_out) => {
                return Err(invalid(format!(
                    "a_in is {a_in} and a_out {a_out}, but both are set or neither"
                )));
            }
        };
        let rank = config.rank;
        let factor = (config.factor > 0).then_some(config.factor);
        let rule = match config.method {
            Method::None | Method::Head | Method::Full => return Ok(None),
            Method::Lora => Rule::Lora { rank },
            Method::Kron => Rule::Kron { split: split.unwrap_or(paper_split(model.hidden())), rank },
            Method::Krona => Rule::Krona { split },
            Method::Lokr => Rule::Lokr { factor, rank },
        };
        let rule = if config.match_params > 0 { matched(&model, rule, config.match_params)? } else { rule };
        let rank = match rule {
            Rule::Kron { rank, .. } | Rule::Lora { rank } | Rule::Lokr { rank, .. } => rank,
            Rule::Krona { .. } => rank,
        };
        let scaling = Scaling::new(config.alpha, rank, ScaleRule::AlphaOverR)?;
        let (dropout, fused) = (Dropout::new(config.dropout)?, config.fused);
        Ok(Some(Self { rule, scaling, dropout, fused }))
    }

    /// Adapters of these shapes, with ΔW = 0.
    ///
    /// # Errors
    /// An empty target.
    pub fn inject(&self, targets: &[String], seed: u64) -> Result<Inject<'static>> {
        let Self { rule, scaling, .. } = *self;
        let shape = move |_: &str, d_out, d_in| -> kron_adapter::Result<(KronShape, Scaling)> {
            Ok((rule.fit(LayerDims { d_out, d_in })?.shape, scaling))
        };
        Ok(self.engine(Inject::new(targets, seed, shape)?))
    }

    /// The factors of an adapter that was trained before.
    pub fn trained(&self, before: Adapter) -> Inject<'static> {
        self.engine(Inject::trained(before))
    }

    fn engine<'a>(&self, inject: Inject<'a>) -> Inject<'a> {
        let inject = inject.with_dropout(self.dropout);
        if self.fused { inject } else { inject.unfused() }
    }

    /// `kron (2, 4) r 8, s = 32/8`, and `, unfused` where it is so.
    pub fn describe(&self) -> String {
        let unfused = if self.fused { "" } else { ", unfused" };
        format!("{}, s = {}{unfused}", self.rule, self.scaling)
    }
}

/// The linear layers that the targets mean.
fn linears(config: &AdapterConfig, weights: &Weights) -> Result<Model> {
    let scaling = Scaling::plain(1.0)?;
    let probe = Inject::new(&config.targets, 0, |_, d_out, d_in| {
        Ok((KronShape::lora(LayerDims { d_out, d_in }, 1)?, scaling))
    })?;
    build(weights, &probe)?;
    let adapters = probe.finish()?;
    let linears = adapters.deltas().iter().map(|delta| {
        let shape = delta.op().shape;
        Linear::new(delta.module(), LayerDims { d_out: shape.d_out(), d_in: shape.d_in() }, 1)
    });
    Ok(Model::new("the model", weights.hidden(), linears.collect::<kron_adapter::Result<_>>()?, 0)?)
}

/// The rule at the rank, or for KronA at the shape, that comes nearest to a number of parameters.
fn matched(model: &Model, rule: Rule, params: u64) -> Result<Rule> {
    if let Rule::Krona { .. } = rule {
        let choices = search(model, Family::Krona, Budget::Nearest(params))?;
        return choices.first().map(|c| c.method).ok_or_else(|| invalid("KronA has no shape on this model"));
    }
    let off = |rank| -> Result<u128> {
        Ok(Plan::new(model, rule.with_rank(rank))?.adapter_params().abs_diff(params.into()))
    };
    let (mut best, mut nearest) = (1, off(1)?);
    for rank in 2..=model.hidden() {
        let distance = off(rank)?;
        if distance < nearest {
            (best, nearest) = (rank, distance);
        } else if distance > nearest && !matches!(rule, Rule::Lokr { .. }) {
            break;
        }
    }
    Ok(rule.with_rank(best))
}
