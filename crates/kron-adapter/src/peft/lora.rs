//! PEFT's LoRA and rsLoRA, and every Kron-LoRA as one.

use std::path::Path;

use crate::algebra::{Delta, Join, Lora, scale64};
use crate::{Adapter, Layer, ScaleRule};
use kron_core::{KronShape, LayerDims, Outer, Theta};
use serde_json::json;

use super::config::{Config, number, written};
use super::lokr::shortest;
use super::patterns::patterns;
use super::{PREFIX, adapter};
use crate::lokr::group;
use crate::matrix::Matrix;
use crate::tensor_data::{TensorData, serialize};
use crate::{Error, Format, Loaded, Output, Result, Tensors, Watch};

const DOWN: &str = "lora_A.weight";
const UP: &str = "lora_B.weight";

pub(super) fn read(folder: &Path, config: &Config, tensors: &Tensors) -> Result<Loaded> {
    let refused = |what: String| Error::data(format!("{}: {what}", folder.display()));
    let names = tensors.names();
    let layers = group(tensors, &names, |name| {
        let name = name.strip_prefix(PREFIX)?;
        [DOWN, UP].into_iter().find_map(|part| Some((name.strip_suffix(part)?.strip_suffix('.')?, part)))
    })?;
    let layers = layers.iter().map(|(module, parts)| {
        let (Some(down), Some(up)) = (parts.get(DOWN), parts.get(UP)) else {
            return Err(refused(format!("{module} needs both {DOWN} and {UP}")));
        };
        let (down, up) = (Matrix::read(tensors, down)?, Matrix::read(tensors, up)?);
        let scaling = config.scaling(module).map_err(refused)?;
        if (up.cols, down.rows) != (scaling.rank(), scaling.rank()) {
            return Err(refused(format!(
                "the factors of {module} have ranks {} and {}, but its configuration says {}",
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
            .map_err(|e| refused(format!("layer {module}: {e}")))
    });
    let adapter = adapter(folder, config, layers.collect::<Result<_>>()?)?;
    Ok(Loaded {
        path: folder.display().to_string(),
        format: Format::PeftLora,
        adapter,
        fan_in_fan_out: config.fan_in_fan_out,
        notes: Vec::new(),
    })
}

/// Which of the LoRAs that a layer is.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoraOptions {
    /// One form for all layers; `None` takes the one of smaller rank layer by layer.
    pub join: Option<Join>,
    /// One rank and one scale for all layers, for engines that know no patterns.
    pub uniform: bool,
}

impl LoraOptions {
    /// Where A goes in this layer.
    pub fn join_of(self, delta: &Delta) -> Join {
        self.join.unwrap_or_else(|| Join::smaller(delta))
    }

    /// The rank of every layer's LoRA.
    pub fn ranks(self, layers: &[Layer]) -> Vec<usize> {
        let deltas = layers.iter().map(Delta::new);
        let ranks: Vec<_> = deltas.map(|delta| delta.rank(self.join_of(&delta))).collect();
        let most = ranks.iter().copied().max().unwrap_or(0);
        if self.uniform { vec![most; ranks.len()] } else { ranks }
    }
}

/// The rank and scale of all layers.
struct Common {
    rank: usize,
    scale: f64,
}

impl Common {
    /// The largest rank, and the commonest scale that is not 0.
    fn of(layers: &[Layer], join: Option<Join>) -> Self {
        let ranks = LoraOptions { join, uniform: true }.ranks(layers);
        let scales: Vec<_> =
            layers.iter().map(|l| ("", scale64(l.scaling()))).filter(|(_, s)| *s != 0.0).collect();
        let scale = patterns(&scales).map_or(1.0, |(scale, _)| scale);
        Self { rank: ranks.first().copied().unwrap_or(0), scale }
    }

    /// Zeros up to the rank, and what differs in the scale multiplied into `up`.
    fn of_layer(&self, lora: Lora) -> Lora {
        let ratio = lora.scale / self.scale;
        let Lora { up, down, .. } = lora.padded(self.rank);
        Lora { scale: self.scale, up: up * ratio, down }
    }
}

/// A folder that any LoRA engine loads: every layer as the LoRA that it is, of
/// the smaller rank unless a side is given.
///
/// A product A_ij·B_pq is rounded once to float32; nothing else is. In the
/// uniform form it is s·A_ij·B_pq / s' where the layer's s is not the common s'.
///
/// # Errors
/// A product that float32 does not hold, more than 2²⁹ numbers in a layer, and the watch's.
pub fn write(adapter: &Adapter, form: LoraOptions, watch: Watch) -> Result<Output> {
    let layers = adapter.layers();
    let common = form.uniform.then(|| Common::of(layers, form.join));
    // rsLoRA stays what it is; beside others, or joined to A, its s is written out.
    let rs =
        !form.uniform && layers.iter().all(|l| l.scaling().rule() == ScaleRule::AlphaOverSqrtR && is_lora(l));
    let mut tensors = Vec::new();
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    for layer in layers {
        let (module, scaling) = (layer.module(), layer.scaling());
        let delta = Delta::new(layer);
        check_size(layer, delta.rank(form.join_of(&delta)).max(common.as_ref().map_or(0, |c| c.rank)))?;
        let mut lora = delta.lora(form.join_of(&delta));
        if let Some(common) = &common {
            lora = common.of_layer(lora);
        }
        let Lora { scale, up, down } = lora;
        let rank = up.ncols();
        let own = common.is_none()
            && is_lora(layer)
            && scaling.rank() == rank
            && (rs || scaling.rule() == ScaleRule::AlphaOverR);
        ranks.push((module, rank));
        alphas.push((module, if own { shortest(scaling.alpha()) } else { scale * rank as f64 }));
        for (name, factor) in [(DOWN, down), (UP, up)] {
            let data: Vec<f32> = factor.iter().map(|v| *v as f32).collect();
            if data.iter().any(|v| !v.is_finite()) {
                return Err(Error::data(format!(
                    "layer {module} has no LoRA form: a product A·B is beyond float32"
                )));
            }
            let matrix = Matrix { rows: factor.nrows(), cols: factor.ncols(), data };
            tensors.push((format!("{PREFIX}{module}.{name}"), TensorData::F32(matrix)));
        }
        watch(1)?;
    }
    let (Some((rank, ranks)), Some((alpha, alphas))) = (patterns(&ranks), patterns(&alphas)) else {
        return Err(Error::data("an adapter has at least one layer"));
    };
    let alphas: serde_json::Map<_, _> = alphas.into_iter().map(|(key, v)| (key, number(v))).collect();
    let own = json!({
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": rs,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "lora_bias": false,
        "lora_dropout": 0.0,
    });
    let config =
        written(adapter.metadata(), layers.iter().map(Layer::module).collect(), own).map_err(Error::data)?;
    Ok(Output::Folder { config, weights: serialize(&tensors)? })
}

/// The largest LoRA of one layer that is built, in numbers.
const MOST_NUMBERS: usize = 1 << 29;

fn check_size(layer: &Layer, rank: usize) -> Result<()> {
    let shape = layer.shape();
    if rank.checked_mul(shape.d_out() + shape.d_in()).is_some_and(|len| len <= MOST_NUMBERS) {
        return Ok(());
    }
    Err(Error::data(format!(
        "layer {} ({shape}) is a LoRA of rank {rank}, which is more than the limit of {MOST_NUMBERS} numbers",
        layer.module()
    )))
}

fn is_lora(layer: &Layer) -> bool {
    layer.shape().outer() == Outer::One && layer.shape().rank() == Some(layer.scaling().rank())
}
