//! LyCORIS LoKr (lycoris-lora 4.1.3): one safetensors file, an `alpha` beside each module.
//!
//! s = alpha / r, where r is the number of columns of w1_a or w2_a. s is 1 if both w1
//! and w2 are full, or if alpha is missing or 0. LyCORIS multiplies s once in its
//! forward pass, as we do. Names have underscores for dots, `lycoris_model_layers_0_…` or,
//! from Kohya's trainers, `lora_unet_…`, which cannot be undone without the
//! model: they stay as they are until `resolve` gives the modules
//! the model's own.

use kron_core::{Inner, KronShape};

use crate::algebra::scale64;
use crate::extras::{Convention, Extras, Scope, Taken, take};
use crate::limits::Limits;
use crate::lokr::{self, Factors, Parts};
use crate::plan::peft_factorization;
use crate::tensor_data::{TensorData, serialize};
use crate::{Adapter, Error, Format, Layer, Loaded, Result, ScaleRule, Scaling, Tensors, text};

/// Prefixes of module names: LyCORIS's own, which we write, then those of Kohya's
/// trainers for a denoiser and for one text encoder or two.
const PREFIXES: [&str; 5] = ["lycoris_", "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"];

/// Reason against a tensor that is no factor.
const NO_FACTOR: &str = "it is not a factor of ΔW, and leaving it out would change the model";

/// Reads a file.
///
/// # Errors
/// Fails on a tensor that is not part of a LoKr of a linear layer, and on factors
/// that do not fit together.
pub(crate) fn read(tensors: &Tensors, scope: Scope) -> Result<(Loaded, Extras)> {
    let convention = Convention {
        prefix: "",
        module: &|name| Some(parts(name)?.0),
        // No tensor of LyCORIS but a factor is multiplied by s.
        scaling: &|_| Scaling::plain(1.0),
        target_parameters: &[],
        biases: false,
        otherwise: NO_FACTOR,
    };
    let Taken { left, extras, .. } = take(tensors, tensors.names(), &convention, scope)?;
    let layers = match left.is_empty() && !extras.is_empty() {
        true => Default::default(),
        false => lokr::group(tensors, &left, NO_FACTOR, parts)?,
    };
    let mut products = 0;
    let mut limits = Limits::new(tensors.len());
    let layers = layers.iter().map(|(module, parts)| {
        let factors = Factors::read(tensors, module, parts, &mut limits)?;
        products += usize::from(factors.rank1.is_some());
        let scaling = scaling(tensors, parts, &factors)?;
        Layer::new(*module, scaling, factors.theta).map_err(|e| e.about(tensors.path()))
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let adapter = match layers.is_empty() {
        true => Adapter::without_layers(),
        false => Adapter::new(layers).map_err(|e| e.about(tensors.path()))?,
    };
    let notes = lokr::rounded(products).into_iter().collect();
    let (path, bytes, format) = (tensors.path().into(), tensors.len(), Format::LycorisLokr);
    Ok((Loaded { path, bytes, limits, format, adapter, fan_in_fan_out: false, notes }, extras))
}

/// Returns the module of a factor or an alpha, and its name in it.
fn parts(name: &str) -> Option<(&str, &str)> {
    let (module, part) = name.rsplit_once('.')?;
    (lokr::NAMES.contains(&part) || part == "alpha").then_some((module, part))
}

fn scaling(tensors: &Tensors, parts: &Parts, factors: &Factors) -> Result<Scaling> {
    let alpha = match parts.get("alpha") {
        None => None,
        Some(name) => match tensors.values_f64(name)?[..] {
            [alpha] => Some(alpha as f32),
            _ => {
                return Err(Error::data(format!(
                    "{}: {} is not one number, as an alpha is",
                    tensors.path(),
                    text::name(name)
                )));
            }
        },
    };
    let scaling = match factors.rank1.or(factors.rank2) {
        None => Scaling::plain(1.0),
        Some(rank) => {
            let alpha = alpha.filter(|alpha| *alpha != 0.0).unwrap_or(rank as f32);
            Scaling::new(alpha, rank, ScaleRule::AlphaOverR)
        }
    };
    scaling.map_err(|e| e.about(tensors.path()))
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
        false => format!("{}{}", PREFIXES[0], module.replace('.', "_")),
    }
}

/// Returns true if LyCORIS made the name.
///
/// ```
/// use kron_adapter::lycoris::is_lycoris;
///
/// assert!(is_lycoris("lycoris_model_layers_0_q_proj") && is_lycoris("lora_te_mlp_fc1"));
/// assert!(!is_lycoris("model.layers.0.q_proj"));
/// ```
pub fn is_lycoris(module: &str) -> bool {
    without_prefix(module).is_some()
}

/// Returns the module with underscores for dots, if LyCORIS made the name.
pub(crate) fn without_prefix(module: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)).filter(|flat| !flat.contains('.'))
}

/// Checks that LyCORIS derives the layer's shape and scale from the file.
fn check(layer: &Layer) -> Result<()> {
    lokr::check(layer, "LyCORIS")?;
    let shape = layer.shape();
    if shape.inner() == Inner::Full {
        let s = scale64(layer.scaling());
        if s != 1.0 {
            let why = format!("with two full factors LyCORIS takes s = 1, but s is {s}");
            return Err(lokr::refused(layer, "LyCORIS", &why));
        }
    }
    let factor = factor(shape);
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
