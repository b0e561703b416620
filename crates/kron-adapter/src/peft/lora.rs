//! PEFT's LoRA and rsLoRA, and every Kron-LoRA as one.

use std::path::Path;

use kron_core::{KronShape, LayerDims, Outer, Theta};
use serde_json::json;

use super::config::{Config, bits, encoded, number, shortest};
use super::joined::joined;
use super::names::{CONFIG, PREFIX, WEIGHTS};
use super::patterns::patterns;
use super::saved::{self, UNSAVED, labels, trained};
use crate::algebra::{Join, scale64};
use crate::elements::first_not_finite;
use crate::limits::{Budget, Limits};
use crate::lokr::group;
use crate::matrix::Matrix;
use crate::tensor_data::{TensorData, serialize};
use crate::{
    Adapter, Error, Format, Layer, Loaded, Output, Progress, Result, ScaleRule, Suggestion, Tensors, text,
};

const DOWN: &str = "lora_A.weight";
const UP: &str = "lora_B.weight";

/// Returns the module of a factor, and the factor's name in it.
pub(super) fn parts(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix(PREFIX)?;
    [DOWN, UP].into_iter().find_map(|part| Some((name.strip_suffix(part)?.strip_suffix('.')?, part)))
}

/// Reads the factors, whose tensors have these names.
pub(super) fn read(
    folder: &Path,
    config: &Config,
    tensors: &Tensors,
    names: &[String],
    limits: Limits,
) -> Result<Loaded> {
    let refused = |what: String| Error::data(format!("{}: {what}", folder.display()));
    let layers = group(tensors, names, UNSAVED, parts)?;
    let layers = layers.iter().map(|(module, parts)| {
        let (Some(down), Some(up)) = (parts.get(DOWN), parts.get(UP)) else {
            return Err(refused(format!("{} needs both {DOWN} and {UP}", text::name(module))));
        };
        let (down, up) = (Matrix::read(tensors, down)?, Matrix::read(tensors, up)?);
        let scaling = config.scaling(module).map_err(|e| e.about(folder.display()))?;
        if (up.cols, down.rows) != (scaling.rank(), scaling.rank()) {
            return Err(refused(format!(
                "the factors of {} have ranks {} and {}, but {CONFIG} has r = {}",
                text::name(module),
                up.cols,
                down.rows,
                scaling.rank()
            )));
        }
        let theta = KronShape::lora(LayerDims { d_out: up.rows, d_in: down.cols }, up.cols)
            .and_then(|shape| Theta::from_factors(shape, &[], &up.data, &down.data));
        theta
            .map_err(Error::from)
            .and_then(|theta| Layer::new(*module, scaling, theta))
            .map_err(|e| e.about(format_args!("layer {}", text::name(module))).about(folder.display()))
    });
    let adapter = config.adapter(folder, layers.collect::<Result<_>>()?)?;
    let path = folder.display().to_string();
    let loaded = Loaded::new(path, limits, tensors.len(), Format::PeftLora, adapter);
    Ok(Loaded { fan_in_fan_out: config.fan_in_fan_out, ..loaded })
}

/// Options of writing layers as LoRAs. The default takes the LoRA of smaller rank,
/// with a rank and a scale for each layer.
///
/// ```
/// use kron_adapter::algebra::Join;
/// use kron_adapter::peft::LoraOptions;
///
/// let options = LoraOptions { join: Some(Join::Up), uniform: true, ..Default::default() };
/// assert_eq!(LoraOptions::default().join, None);
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LoraOptions {
    /// One form for all layers; `None` takes the one of smaller rank layer by layer.
    pub join: Option<Join>,
    /// One rank and one scale for all layers, for engines that know no patterns.
    pub uniform: bool,
    /// Most bytes of all LoRAs together. `None` is what may be made of a file as long as
    /// the adapter's parameters, see [`made_bytes`](crate::limits::made_bytes).
    pub max_bytes: Option<u64>,
    /// Declare that the model's weights are stored as d_in × d_out, as GPT-2's `Conv1D` stores them.
    pub fan_in_fan_out: bool,
}

impl LoraOptions {
    /// Returns the side of the product that takes A in a layer of this shape.
    pub fn join_of(self, shape: &KronShape) -> Join {
        self.join.unwrap_or_else(|| Join::smaller(shape))
    }

    /// Returns the rank of every layer's LoRA.
    pub fn ranks(self, layers: &[Layer]) -> Vec<usize> {
        let ranks: Vec<_> =
            layers.iter().map(|layer| self.join_of(layer.shape()).rank(layer.shape())).collect();
        let max = ranks.iter().copied().max().unwrap_or(0);
        if self.uniform { vec![max; ranks.len()] } else { ranks }
    }

    /// Returns the bytes that the LoRAs of an adapter may take.
    pub(crate) fn budget(self, adapter: &Adapter) -> Budget {
        let budget = Budget::bytes(4 * adapter.params() as u64);
        match self.max_bytes {
            Some(limit) => budget.with_limit(limit),
            None => budget,
        }
    }

    /// Fails if the LoRAs take more than `max_bytes`.
    pub(crate) fn check_size(self, adapter: &Adapter) -> Result<()> {
        let mut budget = self.budget(adapter);
        for (layer, rank) in adapter.layers().iter().zip(self.ranks(adapter.layers())) {
            let shape = layer.shape();
            let bytes = 4 * rank as u128 * (shape.d_out() as u128 + shape.d_in() as u128);
            let what = format_args!("layer {} ({shape}), a LoRA of rank {rank},", layer.module());
            budget.spend(what, bytes).map_err(|e| e.with(Suggestion::MaxBytes))?;
        }
        Ok(())
    }
}

/// The rank and scale of all layers.
struct Common {
    rank: usize,
    scale: f64,
}

impl Common {
    /// Takes the largest rank, and the commonest scale that is not 0.
    fn of(layers: &[Layer], join: Option<Join>) -> Self {
        let ranks = LoraOptions { join, uniform: true, ..Default::default() }.ranks(layers);
        let scales: Vec<_> =
            layers.iter().map(|l| ("", scale64(l.scaling()))).filter(|(_, s)| *s != 0.0).collect();
        let scale = patterns(&scales, bits).map_or(1.0, |(scale, _)| scale);
        Self { rank: ranks.first().copied().unwrap_or(0), scale }
    }
}

/// Encodes a folder that any LoRA engine loads: every layer as the equal LoRA, of
/// the smaller rank unless the options choose a side.
///
/// A product A_ij·B_pq is rounded once to float32; nothing else is. In the
/// uniform form it is s·A_ij·B_pq / s' where the layer's s is not the common s'.
///
/// # Errors
/// Fails if float32 does not hold a product, if the LoRAs take more than the options
/// allow, and if `progress` fails.
pub fn write(adapter: &Adapter, options: LoraOptions, progress: Progress) -> Result<Output> {
    let layers = adapter.layers();
    options.check_size(adapter)?;
    let common = options.uniform.then(|| Common::of(layers, options.join));
    // rsLoRA stays what it is; beside others, or joined to A, its s is written out.
    let rs = !options.uniform
        && layers.iter().all(|l| l.scaling().rule() == ScaleRule::AlphaOverSqrtR && is_lora(l));
    let mut tensors = Vec::new();
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    for layer in layers {
        let (module, scaling) = (layer.module(), layer.scaling());
        let (join, own_scale) = (options.join_of(layer.shape()), scale64(scaling));
        // The common form pads with zeros up to the rank, and multiplies the ratio of the scales into up.
        let (rank, scale, ratio) = match &common {
            Some(common) => (common.rank, common.scale, own_scale / common.scale),
            None => (join.rank(layer.shape()), own_scale, 1.0),
        };
        let own = common.is_none()
            && is_lora(layer)
            && scaling.rank() == rank
            && (rs || scaling.rule() == ScaleRule::AlphaOverR);
        ranks.push((module, rank));
        alphas.push((module, if own { shortest(scaling.alpha()) } else { scale * rank as f64 }));
        let [up, down] = joined(layer.theta(), join, rank, ratio);
        for (name, factor) in [(DOWN, down), (UP, up)] {
            if first_not_finite(&factor.data).is_some() {
                return Err(Error::data(format!(
                    "layer {module} has no LoRA form: a product A·B is beyond float32"
                )));
            }
            tensors.push((format!("{PREFIX}{module}.{name}"), TensorData::F32(factor)));
        }
        progress(1)?;
    }
    let (Some((rank, ranks)), Some((alpha, alphas))) =
        (patterns(&ranks, |r| r as u64), patterns(&alphas, bits))
    else {
        return Err(Error::data("an adapter has at least one layer"));
    };
    let alphas: serde_json::Map<_, _> = alphas.into_iter().map(|(key, v)| (key, number(v))).collect();
    let mut own = json!({
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": rs,
        "use_dora": false,
        "fan_in_fan_out": options.fan_in_fan_out,
        "init_lora_weights": true,
        "lora_bias": false,
        "lora_dropout": 0.0,
    });
    tensors.extend(trained(adapter, true));
    own.as_object_mut().into_iter().for_each(|own| own.extend(saved::fields(adapter)));
    let config = encoded(adapter, own, true)?;
    Ok(Output::Folder(vec![(CONFIG, config), (WEIGHTS, serialize(&tensors, labels(adapter, true))?)]))
}

fn is_lora(layer: &Layer) -> bool {
    layer.shape().outer() == Outer::One && layer.shape().rank() == Some(layer.scaling().rank())
}
