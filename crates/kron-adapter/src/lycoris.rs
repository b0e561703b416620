//! One safetensors file without a configuration: LoKr of LyCORIS (lycoris-lora 4.1.3), LoRA of Kohya's trainers and
//! of diffusers, an `alpha` beside each module.
//!
//! s = alpha / r, where r is the number of columns of w1_a or w2_a, or of the LoRA's up. s is 1 if both w1
//! and w2 are full, or if alpha is missing or 0; a LoRA's alpha may also stand in the metadata. LyCORIS multiplies s
//! once in its forward pass, as we do. Names have underscores for dots, `lycoris_model_layers_0_…` or,
//! from Kohya's trainers, `lora_unet_…`, which cannot be undone without the
//! model: they stay as they are until `resolve` gives the modules
//! the model's own.

use kron_core::{Inner, KronShape, LayerDims, Theta};

use crate::algebra::scale64;
use crate::extras::{Convention, Extras, Scope, Taken, take};
use crate::limits::Limits;
use crate::lokr::{self, Factors, Parts, Shaped, shaped};
use crate::lycoris_names::OWN_PREFIX;
use crate::matrix::{Matrix, pointwise};
use crate::metadata_alpha::MetadataAlpha;
use crate::plan::peft_factorization;
use crate::tensor_data::{TensorData, serialize};
use crate::{Adapter, Error, Format, Layer, Loaded, Result, ScaleRule, Scaling, Tensors, text};

pub use crate::lycoris_names::is_lycoris;

/// Reason against a tensor that is no factor.
const NO_FACTOR: &str = "it is not a factor of ΔW, and leaving it out would change the model";

const ALPHA: &str = "alpha";
const DOWN: &str = "lora_down.weight";
const UP: &str = "lora_up.weight";

/// Spellings of a LoRA's factors: Kohya's, PEFT's, and two of diffusers.
const LORA: [(&str, &str); 8] = [
    (DOWN, DOWN),
    (UP, UP),
    ("lora_A.weight", DOWN),
    ("lora_B.weight", UP),
    ("lora.down.weight", DOWN),
    ("lora.up.weight", UP),
    ("lora_linear_layer.down.weight", DOWN),
    ("lora_linear_layer.up.weight", UP),
];

/// Returns the module of a factor or an alpha, and the tensor's part in it.
fn split(name: &str) -> Option<(&str, &str)> {
    let lora =
        LORA.into_iter().find_map(|(end, part)| Some((name.strip_suffix(end)?.strip_suffix('.')?, part)));
    lora.or_else(|| {
        let (module, part) = name.rsplit_once('.')?;
        (lokr::NAMES.contains(&part) || part == ALPHA).then_some((module, part))
    })
}

/// True for the name of a factor of a LoKr or a LoRA.
pub fn is_factor(name: &str) -> bool {
    split(name).is_some_and(|(_, part)| part != ALPHA)
}

/// Layers of each kind that were read, for the format and the notes.
#[derive(Default)]
struct Seen<'a> {
    loras: usize,
    /// LoKr layers whose w1 is a product.
    products: usize,
    /// Modules of two full factors, with an alpha that is not the metadata's rank.
    ignored: Vec<&'a str>,
}

/// Reads a file.
///
/// # Errors
/// Fails on a tensor that is not part of a LoKr or a LoRA of a linear layer, and on factors
/// that do not fit together.
pub(crate) fn read(tensors: &Tensors, scope: Scope) -> Result<(Loaded, Extras)> {
    let convention = Convention {
        prefix: "",
        module: &|name| Some(split(name)?.0),
        // No tensor of LyCORIS but a factor is multiplied by s.
        scaling: None,
        target_parameters: &[],
        otherwise: NO_FACTOR,
    };
    let Taken { left: names, extras, .. } = take(tensors, tensors.names(), &convention, scope)?;
    let grouped = match names.is_empty() && !extras.is_empty() {
        true => Default::default(),
        false => lokr::group(tensors, &names, NO_FACTOR, split)?,
    };
    let is_lora = |parts: &Parts| parts.contains_key(DOWN) || parts.contains_key(UP);
    let lacking = grouped.iter().filter(|(_, parts)| is_lora(parts) && !parts.contains_key(ALPHA));
    let mut alphas = MetadataAlpha::read(tensors, lacking.map(|(module, _)| *module), scope)?;
    let mut limits = Limits::new(tensors.len());
    let mut seen = Seen::default();
    let mut layers = Vec::with_capacity(grouped.len());
    for (&module, parts) in &grouped {
        let alpha = parts.get(ALPHA).map(|name| tensors.number(name)).transpose()?;
        let (theta, scaling) = if is_lora(parts) {
            seen.loras += 1;
            let theta = lora(tensors, module, parts)?;
            let rank = theta.shape().width();
            let scaling = match alpha {
                Some(alpha) => scaling(Some(alpha), Some(rank)),
                None => alphas.scaling(module, rank),
            };
            (theta, scaling)
        } else {
            let factors = Factors::read(tensors, module, parts, &mut limits)?;
            seen.products += usize::from(factors.rank1.is_some());
            let rank = factors.rank1.or(factors.rank2);
            if rank.is_none() && alphas.is_other_rank(alpha) {
                seen.ignored.push(module);
            }
            (factors.theta, scaling(alpha, rank))
        };
        let layer = scaling.and_then(|scaling| Layer::new(module, scaling, theta));
        layers.push(layer.map_err(|e| e.about(tensors.path()))?);
    }
    let format = match (seen.loras, names.iter().any(|name| name.ends_with(DOWN))) {
        (0, _) => Format::LycorisLokr,
        (loras, _) if loras < layers.len() => Format::LycorisMixed,
        (_, true) => Format::KohyaLora,
        (_, false) => Format::DiffusersLora,
    };
    let adapter = match layers.is_empty() {
        true => Adapter::without_layers(),
        false => Adapter::new(layers).map_err(|e| e.about(tensors.path()))?,
    };
    if let Some(module) = alphas.dora().iter().find(|module| !extras.magnitudes.contains_key(*module)) {
        return Err(Error::data(format!(
            "{}: the metadata has use_dora, but {} has no magnitude of DoRA",
            tensors.path(),
            text::name(module)
        )));
    }
    let mut loaded = Loaded::new(tensors.path().into(), limits, tensors.len(), format, adapter);
    loaded.fan_in_fan_out = alphas.fan_in_fan_out();
    loaded.notes.extend(lokr::rounded(seen.products));
    loaded.notes.extend(pointwise(tensors, &names));
    loaded.notes.extend(text::first_and_more(seen.ignored).map(|modules| {
        format!("two full factors have s = 1, so their alpha, which is not ss_network_dim, has no effect: {modules}")
    }));
    loaded.notes.extend(alphas.notes());
    Ok((loaded, extras))
}

/// θ of a LoRA's two factors.
fn lora(tensors: &Tensors, module: &str, parts: &Parts) -> Result<Theta> {
    let refused = |why: String| Error::data(format!("{}: {} {why}", tensors.path(), text::name(module)));
    let lokr = parts.keys().find(|part| lokr::NAMES.contains(part));
    let (Some(down), Some(up), None) = (parts.get(DOWN), parts.get(UP), lokr) else {
        let there: Vec<_> = parts.values().map(|name| text::name(name)).collect();
        return Err(refused(format!(
            "needs both factors of a LoRA and nothing else, but has {}",
            there.join(", ")
        )));
    };
    let (down, up) = (Matrix::read(tensors, down)?, Matrix::read(tensors, up)?);
    if up.cols != down.rows {
        return Err(refused(format!("has an up of rank {} and a down of rank {}", up.cols, down.rows)));
    }
    KronShape::lora(LayerDims { d_out: up.rows, d_in: down.cols }, up.cols)
        .and_then(|shape| Theta::from_factors(shape, &[], &up.data, &down.data))
        .map_err(|e| refused(format!("is refused: {e}")))
}

/// Returns alpha / r, and 1 where there is no alpha, where it is 0, and where there is no rank.
fn scaling(alpha: Option<f64>, rank: Option<usize>) -> Result<Scaling> {
    let Some(rank) = rank else { return Scaling::plain(1.0) };
    let alpha = alpha.map(|alpha| alpha as f32).filter(|alpha| *alpha != 0.0);
    Scaling::new(alpha.unwrap_or(rank as f32), rank, ScaleRule::AlphaOverR)
}

/// Returns the bytes of a file that LyCORIS loads.
///
/// # Errors
/// Fails on LoRA layers, on a scale other than 1 where both factors are full, and on
/// splits or ranks that LyCORIS derives differently from the factors' sizes.
pub(crate) fn write(adapter: &Adapter) -> Result<Vec<u8>> {
    let mut stored = Vec::new();
    for layer in adapter.layers() {
        check(layer)?;
        let module = name(layer.module());
        stored.extend(
            lokr::factors(layer)
                .into_iter()
                .map(|(part, m)| (format!("{module}.{part}"), TensorData::F32(m))),
        );
        let rank = layer.shape().rank().unwrap_or(1);
        let alpha = scale64(layer.scaling()) * rank as f64;
        // LyCORIS replaces an alpha of 0 by the rank, so a scale of 0 has no form.
        if alpha == 0.0 {
            return Err(Error::data(format!(
                "layer {} has a scale of 0, which LyCORIS cannot express: it replaces an alpha of 0 by the rank",
                layer.module()
            )));
        }
        stored.push((format!("{module}.alpha"), TensorData::Scalar(alpha)));
    }
    stored.sort_by(|x, y| x.0.cmp(&y.0));
    if let Some(twice) = stored.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::data(format!(
            "two modules become the name {}, because LyCORIS writes an underscore for a dot",
            twice[0].0
        )));
    }
    serialize(&stored, None)
}

/// Returns the module's name as LyCORIS writes it; one that it wrote stays.
fn name(module: &str) -> String {
    match is_lycoris(module) {
        true => module.into(),
        false => format!("{}{}", OWN_PREFIX, module.replace('.', "_")),
    }
}

/// Checks that LyCORIS derives the layer's shape and scale from the file.
fn check(layer: &Layer) -> Result<()> {
    check_shape(shaped(layer))?;
    if layer.shape().inner() == Inner::Full {
        let s = scale64(layer.scaling());
        if s != 1.0 {
            let why = format!("with two full factors LyCORIS takes s = 1, but s is {s}");
            return Err(lokr::refused(shaped(layer), "LyCORIS", &why));
        }
    }
    Ok(())
}

/// Checks that LyCORIS derives the layer's shape from the file.
pub(crate) fn check_shape(layer: Shaped) -> Result<()> {
    lokr::check(layer, "LyCORIS")?;
    let (_, shape) = layer;
    let factor = factor(&shape);
    let [a_out, a_in] = [shape.d_out(), shape.d_in()].map(|dim| factorization(dim, factor).0);
    if [a_out, a_in] != [shape.a_out(), shape.a_in()] {
        let why = format!(
            "when it loads the file, LyCORIS splits the layer by {a_out} × {a_in}, not {} × {}",
            shape.a_out(),
            shape.a_in()
        );
        return Err(lokr::refused(layer, "LyCORIS", &why));
    }
    Ok(())
}

/// Returns the factor that LyCORIS infers from w1 and w2 (`LokrModule.make_module_from_state_dict`).
fn factor(shape: &KronShape) -> Option<usize> {
    let (w1, w2) = ([shape.a_out(), shape.a_in()], [shape.b_out(), shape.c_in()]);
    let dims = [shape.d_out(), shape.d_in()];
    if dims.map(|dim| factorization(dim, None).0) == w1 {
        return None;
    }
    let [one, two] = [w1, w2].map(|sides| sides[0].max(sides[1]));
    let fits =
        |f: &usize| (0..2).all(|side| dims[side].is_multiple_of(*f) && [w1[side], w2[side]].contains(f));
    Some([one, two].into_iter().find(fits).unwrap_or(one.min(two)))
}

/// Factorizes as PEFT does, but with the smaller part first.
fn factorization(dim: usize, factor: Option<usize>) -> (usize, usize) {
    let (m, n) = peft_factorization(dim, factor);
    (m.min(n), m.max(n))
}
