//! Several adapters as one, as PEFT's `add_weighted_adapter` defines it.
//!
//! ```text
//! cat       ΔW = Σ w·s·ΔW_i, exactly: up = [up_1 | up_2 …], down = [w·s·down_1 ; w·s·down_2 …]
//! linear    up = Σ √|w·s|·up_i, down = Σ ±√|w·s|·down_i, which has products of one adapter's up and another's down
//! ties, dare, magnitude-prune    the same sums, of factors that are made sparse before
//! ```

mod arithmetic;

use std::borrow::Cow;
use std::collections::BTreeMap;

use indexmap::IndexMap;
use kron_core::{KronShape, LayerDims, Outer, Theta};

use crate::algebra::{Join, scale64};
use crate::limits::Limits;
use crate::peft::joined;
use crate::{Adapter, Error, Layer, Result, Scaling};
use arithmetic::{Random, Sparse};

pub use arithmetic::Majority;

/// How factors are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Stacked factors; exact, and the ranks add up.
    Cat,
    /// Weighted sums of the factors.
    Linear,
    /// TIES (arXiv 2306.01708): the largest values by magnitude, of which those of the majority's sign are averaged.
    Ties {
        /// Share of the values that is kept.
        density: f64,
        /// How the sign of the majority is found.
        majority: Majority,
    },
    /// DARE (arXiv 2311.03099): random values are kept and divided by the density, then summed.
    DareLinear {
        /// Share of the values that is kept.
        density: f64,
        /// Seed of the choice.
        seed: u64,
    },
    /// DARE's choice, then the averages of TIES.
    DareTies {
        /// Share of the values that is kept.
        density: f64,
        /// Seed of the choice.
        seed: u64,
        /// How the sign of the majority is found.
        majority: Majority,
    },
    /// The largest values by magnitude, then summed.
    MagnitudePrune {
        /// Share of the values that is kept.
        density: f64,
    },
}

impl Method {
    /// Share of the values that is kept.
    const fn density(self) -> f64 {
        match self {
            Method::Cat | Method::Linear => 1.0,
            Method::Ties { density, .. }
            | Method::DareLinear { density, .. }
            | Method::DareTies { density, .. }
            | Method::MagnitudePrune { density } => density,
        }
    }
}

/// Combines adapters with their weights. Layers that one adapter alone has go along. A layer that is no LoRA is
/// written as the equal LoRA where it is stacked; the bytes are taken from the limits.
///
/// ```
/// use kron_adapter::combine::{Method, combine};
/// use kron_adapter::limits::Limits;
/// use kron_adapter::{Adapter, Layer, Scaling};
/// use kron_core::{KronShape, LayerDims, Theta};
///
/// let lora = |rank, seed| {
///     let theta = Theta::random(KronShape::lora(LayerDims { d_out: 6, d_in: 4 }, rank)?, seed);
///     Adapter::new(vec![Layer::new("q", Scaling::plain(2.0)?, theta)?])
/// };
/// let (a, b) = (lora(2, 1)?, lora(3, 2)?);
/// let both = combine(&[(&a, 0.7), (&b, -0.3)], Method::Cat, &mut Limits::new(1 << 20))?;
/// assert_eq!(both.layers()[0].shape().rank(), Some(5));
/// # Ok::<(), kron_adapter::Error>(())
/// ```
///
/// # Errors
/// Fails without an adapter, on a density outside (0, 1], on trained tensors, on layers of one module and different
/// sizes, on layers that are no LoRAs or have different ranks where factors are summed, and if the LoRAs of
/// others take more bytes than the limits have.
pub fn combine(adapters: &[(&Adapter, f64)], method: Method, limits: &mut Limits) -> Result<Adapter> {
    let Some((first, _)) = adapters.first() else {
        return Err(Error::usage("no adapter is given, but one or more are combined"));
    };
    if !(method.density() > 0.0 && method.density() <= 1.0) {
        return Err(Error::usage(format!(
            "the density is {}, but a share of the values above 0 and up to 1 is kept",
            method.density()
        )));
    }
    if let Some(names) = adapters.iter().find_map(|(adapter, _)| adapter.trained_summary()) {
        return Err(Error::data(format!(
            "trained tensors replace the model's and have no weighted sum: {names}"
        ))
        .with(crate::Suggestion::FactorsOnly));
    }
    if method != Method::Cat {
        adapters.iter().try_for_each(|(adapter, _)| adapter.check_no_sums("a sum of factors"))?;
    }
    let mut modules: IndexMap<&str, Vec<(&Layer, f64)>> = IndexMap::new();
    for (adapter, weight) in adapters {
        for layer in adapter.layers() {
            modules.entry(layer.module()).or_default().push((layer, *weight));
        }
    }
    let mut random = match method {
        Method::DareLinear { seed, .. } | Method::DareTies { seed, .. } => Random::new(seed),
        _ => Random::new(0),
    };
    let layers = modules.values().map(|layers| {
        check_sizes(layers)?;
        match method {
            Method::Cat => cat(layers, None, limits),
            method => summed(layers, method, &mut random),
        }
    });
    let mut targets: Vec<String> = Vec::new();
    for target in adapters.iter().flat_map(|(adapter, _)| adapter.target_modules()) {
        if !targets.contains(target) {
            targets.push(target.clone());
        }
    }
    let same = |(key, text): &(&String, &String)| {
        adapters.iter().all(|(adapter, _)| adapter.metadata().get(*key) == Some(*text))
    };
    let metadata: BTreeMap<_, _> =
        first.metadata().iter().filter(same).map(|(key, text)| (key.clone(), text.clone())).collect();
    Adapter::new(layers.collect::<Result<_>>()?)?.with_target_modules(targets)?.with_metadata(metadata)
}

fn check_sizes(layers: &[(&Layer, f64)]) -> Result<()> {
    let dims = |layer: &Layer| (layer.shape().d_out(), layer.shape().d_in());
    let [(first, _), ..] = layers else { return Ok(()) };
    match layers.iter().find(|(layer, _)| dims(layer) != dims(first)) {
        None => Ok(()),
        Some((other, _)) => Err(Error::data(format!(
            "layer {} is {} in one adapter and {} in another, but layers of one size are combined",
            first.module(),
            first.shape(),
            other.shape()
        ))),
    }
}

/// Returns the adapter with each sum of terms as one layer, the LoRA that is equal to it; all other layers stay.
///
/// Its rank is the sum of the terms' ranks as LoRAs, in the form `join`, or each in the one of smaller rank. An element of
/// a factor is one product of two values, rounded once; where the terms have several scales, those of down are then
/// multiplied by their term's and rounded once more.
///
/// # Errors
/// Fails if the LoRAs take more bytes than the limits have.
pub fn sums_as_lora<'a>(
    adapter: &'a Adapter,
    join: Option<Join>,
    limits: &mut Limits,
) -> Result<Cow<'a, Adapter>> {
    if adapter.modules() == adapter.layers().len() {
        return Ok(Cow::Borrowed(adapter));
    }
    let sums = adapter.layers().chunk_by(|one, next| one.module() == next.module());
    let layers =
        sums.map(|terms| cat(&terms.iter().map(|term| (term, 1.0)).collect::<Vec<_>>(), join, limits));
    Ok(Cow::Owned(adapter.with_layers(layers.collect::<Result<_>>()?)?))
}

/// Returns Σ w·s·ΔW by stacked factors.
fn cat(layers: &[(&Layer, f64)], join: Option<Join>, limits: &mut Limits) -> Result<Layer> {
    if let [(layer, weight)] = layers {
        let scaling = layer.scaling();
        let scaling = match *weight == 1.0 {
            true => scaling,
            false => Scaling::plain((scale64(scaling) * weight) as f32)?,
        };
        return Layer::new(layer.module(), scaling, layer.theta().clone());
    }
    let (module, d_out, d_in) = common(layers)?;
    let scales: Vec<f64> = layers.iter().map(|(layer, weight)| scale64(layer.scaling()) * weight).collect();
    // One scale for all stays a scale, and no factor is rounded.
    let one = scales.iter().all(|scale| *scale == scales[0]);
    let scale = if one { scales[0] } else { 1.0 };
    let (mut ups, mut down) = (Vec::new(), Vec::new());
    for ((layer, _), own) in layers.iter().zip(scales) {
        let (up, rows) = lora(layer, join, limits)?;
        let ratio = if one { 1.0 } else { own };
        down.extend(rows.iter().map(|v| (f64::from(*v) * ratio) as f32));
        ups.push(up);
    }
    let ranks: Vec<usize> = ups.iter().map(|up| up.len() / d_out).collect();
    let rows = (0..d_out).flat_map(|row| ups.iter().zip(&ranks).map(move |(up, r)| &up[row * r..][..*r]));
    let up: Vec<f32> = rows.flatten().copied().collect();
    let shape = KronShape::lora(LayerDims { d_out, d_in }, ranks.iter().sum())?;
    Layer::new(module, Scaling::plain(scale as f32)?, Theta::from_factors(shape, &[], &up, &down)?)
}

/// Returns up and down of the LoRA equal to a layer, without its scale.
fn lora(layer: &Layer, join: Option<Join>, limits: &mut Limits) -> Result<(Vec<f32>, Vec<f32>)> {
    let (shape, theta) = (layer.shape(), layer.theta());
    if let (Outer::One, Some(_)) = (shape.outer(), shape.rank()) {
        return Ok((theta.b().to_vec(), theta.c().to_vec()));
    }
    let join = join.unwrap_or_else(|| Join::smaller(shape));
    let rank = join.rank(shape);
    let bytes = 4 * rank as u128 * (shape.d_out() as u128 + shape.d_in() as u128);
    limits.bytes.spend(format_args!("layer {} ({shape}), a LoRA of rank {rank},", layer.module()), bytes)?;
    let [up, down] = joined(theta, join, rank, 1.0);
    Ok((up.data, down.data))
}

/// Returns the LoRA of summed factors.
fn summed(layers: &[(&Layer, f64)], method: Method, random: &mut Random) -> Result<Layer> {
    let (module, d_out, d_in) = common(layers)?;
    let rank = |layer: &Layer| match layer.shape().outer() {
        Outer::One => layer.shape().rank(),
        Outer::Trained => None,
    };
    let ranks: Vec<_> = layers.iter().map(|(layer, _)| rank(layer)).collect();
    let (Some(&Some(rank)), true) = (ranks.first(), ranks.iter().all(|rank| *rank == ranks[0])) else {
        let shapes: Vec<_> = layers.iter().map(|(layer, _)| layer.shape().to_string()).collect();
        return Err(Error::data(format!(
            "layer {module} is {}, but factors are summed of LoRAs of one rank; stacked factors take any layers",
            shapes.join(" and ")
        )));
    };
    let scales: Vec<f64> = layers.iter().map(|(layer, weight)| scale64(layer.scaling()) * weight).collect();
    let sum = |factors: Vec<&[f32]>, weights: Vec<f64>, random: &mut Random| -> Vec<f32> {
        let density = method.density();
        let sparse = factors.iter().map(|factor| match method {
            Method::Cat | Method::Linear => Sparse::whole(factor),
            Method::Ties { .. } | Method::MagnitudePrune { .. } => Sparse::largest(factor, density),
            Method::DareLinear { .. } | Method::DareTies { .. } => Sparse::random(factor, density, random),
        });
        let sparse: Vec<Sparse> = sparse.collect();
        match method {
            Method::Ties { majority, .. } | Method::DareTies { majority, .. } => {
                arithmetic::majority_mean(&sparse, &weights, majority)
            }
            _ => arithmetic::weighted_sum(&sparse, &weights),
        }
    };
    // The sign goes to one factor, as it would cancel in both.
    let down = sum(
        layers.iter().map(|(layer, _)| layer.theta().c()).collect(),
        scales.iter().map(|s| s.abs().sqrt() * if *s < 0.0 { -1.0 } else { 1.0 }).collect(),
        random,
    );
    let up = sum(
        layers.iter().map(|(layer, _)| layer.theta().b()).collect(),
        scales.iter().map(|s| s.abs().sqrt()).collect(),
        random,
    );
    let shape = KronShape::lora(LayerDims { d_out, d_in }, rank)?;
    Layer::new(module, Scaling::plain(1.0)?, Theta::from_factors(shape, &[], &up, &down)?)
}

/// Returns module and sizes of layers, which share them.
fn common<'a>(layers: &[(&'a Layer, f64)]) -> Result<(&'a str, usize, usize)> {
    let (layer, _) = layers.first().ok_or_else(|| Error::data("an adapter has at least one layer"))?;
    Ok((layer.module(), layer.shape().d_out(), layer.shape().d_in()))
}
