//! PEFT's LoKr.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use kron_core::Inner;
use serde_json::json;

use super::config::{Config, bits, encoded, number, shortest};
use super::names::{CONFIG, PREFIX, WEIGHTS};
use super::patterns::patterns;
use super::saved::{UNSAVED, labels, trained};
use crate::algebra::scale64;
use crate::limits::Limits;
use crate::lokr::{self, Factors, Shaped, shaped};
use crate::plan::{divisors, peft_first};
use crate::tensor_data::{TensorData, serialize};
use crate::{Adapter, Error, Format, Layer, Loaded, Output, Result, ScaleRule, Suggestion, Tensors, text};

/// Returns the module of a factor, and the factor's name in it.
pub(super) fn parts(name: &str) -> Option<(&str, &str)> {
    let (module, part) = name.strip_prefix(PREFIX)?.rsplit_once('.')?;
    lokr::NAMES.contains(&part).then_some((module, part))
}

/// Reads the factors, whose tensors have these names.
pub(super) fn read(
    folder: &Path,
    config: &Config,
    tensors: &Tensors,
    names: &[String],
    mut limits: Limits,
) -> Result<Loaded> {
    let layers = lokr::group(tensors, names, UNSAVED, parts)?;
    let mut products = 0;
    let layers = layers.iter().map(|(module, parts)| {
        let factors = Factors::read(tensors, module, parts, &mut limits)?;
        products += usize::from(factors.rank1.is_some());
        let scaling = config.scaling(module).map_err(|e| e.about(folder.display()))?;
        if let Some(rank) =
            [factors.rank1, factors.rank2].into_iter().flatten().find(|r| *r != scaling.rank())
        {
            let why = format!(
                "the factors of {} have rank {rank}, but {CONFIG} has r = {}",
                text::name(module),
                scaling.rank()
            );
            return Err(Error::data(why).about(folder.display()));
        }
        Layer::new(*module, scaling, factors.theta).map_err(|e| e.about(folder.display()))
    });
    let adapter = config.adapter(folder, layers.collect::<Result<_>>()?)?;
    let notes = lokr::rounded(products).into_iter().collect();
    let path = folder.display().to_string();
    let loaded = Loaded::new(path, limits, tensors.len(), Format::PeftLokr, adapter);
    Ok(Loaded { fan_in_fan_out: config.fan_in_fan_out, notes, ..loaded })
}

/// Encodes a folder that PEFT loads: factors as they are, w1 full.
///
/// # Errors
/// Fails on LoRA layers, on a rank from which on PEFT makes w2 full, and on splits
/// that no single `decompose_factor` gives.
pub fn write(adapter: &Adapter) -> Result<Output> {
    let layers = adapter.layers();
    let factor = check_shapes(&layers.iter().map(shaped).collect::<Vec<_>>())?;
    let values: Vec<(&str, (usize, f64))> = layers.iter().map(|l| (l.module(), rank_and_alpha(l))).collect();
    let ranks: Vec<_> = values.iter().map(|(module, (rank, _))| (*module, *rank)).collect();
    let alphas: Vec<_> = values.iter().map(|(module, (_, alpha))| (*module, *alpha)).collect();
    let (Some((rank, ranks)), Some((alpha, alphas))) =
        (patterns(&ranks, |r| r as u64), patterns(&alphas, bits))
    else {
        return Err(Error::data("an adapter has at least one layer"));
    };
    let alphas: serde_json::Map<_, _> = alphas.into_iter().map(|(key, v)| (key, number(v))).collect();
    let own = json!({
        "peft_type": "LOKR",
        "r": rank,
        "alpha": number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "decompose_both": false,
        "decompose_factor": factor.map_or(-1, |f| f as i64),
        "init_weights": true,
        "module_dropout": 0.0,
        "rank_dropout": 0.0,
        "rank_dropout_scale": false,
        "use_effective_conv2d": false,
    });
    let config = encoded(adapter, own, false)?;
    let factors = layers.iter().flat_map(|layer| {
        let name = |part| format!("{PREFIX}{}.{part}", layer.module());
        lokr::factors(layer).into_iter().map(move |(part, matrix)| (name(part), TensorData::F32(matrix)))
    });
    let tensors: Vec<_> = factors.chain(trained(adapter, false)).collect();
    Ok(Output::Folder(vec![(CONFIG, config), (WEIGHTS, serialize(&tensors, labels(adapter, false))?)]))
}

/// Returns r and alpha with s = alpha / r, such that PEFT gives w2 the layer's form.
fn rank_and_alpha(layer: &Layer) -> (usize, f64) {
    let (shape, scaling) = (layer.shape(), layer.scaling());
    let full = shape.b_out().max(shape.c_in()).div_ceil(2);
    let rank = match shape.inner() {
        Inner::LowRank(r) => r,
        Inner::Full if scaling.rank() >= full => scaling.rank(),
        Inner::Full => full,
    };
    let own = scaling.rule() == ScaleRule::AlphaOverR && scaling.rank() == rank;
    (rank, if own { shortest(scaling.alpha()) } else { scale64(scaling) * rank as f64 })
}

/// Checks that PEFT gives the layers their shapes, and returns the factor by which it splits every layer as it is
/// split; `None` is −1.
pub fn check_shapes(layers: &[Shaped]) -> Result<Option<usize>> {
    layers.iter().try_for_each(|layer| lokr::check(*layer, "PEFT"))?;
    // Layers of one shape are one case, and a side's divisors are listed once.
    let mut seen = HashSet::new();
    let sides = |(_, shape): &Shaped| [(shape.d_out(), shape.a_out()), (shape.d_in(), shape.a_in())];
    let cases: Vec<&Shaped> = layers.iter().filter(|layer| seen.insert(sides(layer))).collect();
    let dims: BTreeSet<usize> = cases.iter().flat_map(|layer| sides(layer)).map(|(dim, _)| dim).collect();
    let divisors: HashMap<usize, Vec<usize>> = dims.into_iter().map(|dim| (dim, divisors(dim))).collect();
    let fits = |layer: &Shaped, factor: Option<usize>| {
        sides(layer).into_iter().all(|(dim, a)| peft_first(&divisors[&dim], dim, factor) == a)
    };
    let Some(first) = cases.first() else { return Ok(None) };
    // The result of a factor changes only at a divisor and after it.
    let factors: BTreeSet<usize> = divisors.values().flatten().flat_map(|d| [*d, d + 1]).collect();
    let candidates = std::iter::once(None).chain(factors.into_iter().map(Some));
    let mut candidates: Vec<_> = candidates.filter(|factor| fits(first, *factor)).collect();
    for layer in cases {
        let left: Vec<_> = candidates.iter().copied().filter(|factor| fits(layer, *factor)).collect();
        if left.is_empty() {
            let which = if candidates.is_empty() { "this one so" } else { "this and those before it so" };
            let why = format!("PEFT splits every layer by one decompose_factor, and none splits {which}");
            return Err(lokr::refused(*layer, "PEFT", &why).with(Suggestion::LosslessLora));
        }
        candidates = left;
    }
    Ok(candidates.first().copied().flatten())
}
