//! LyCORIS LoKr (lycoris-lora 4.1.3): one safetensors file, an `alpha` beside each module.
//!
//! s = alpha / r with r the columns of w1_a or w2_a, 1 where both w1 and w2 are
//! full or where there is no alpha, or one of 0. Its forward multiplies s once,
//! and so do we. Names have underscores for dots, `lycoris_model_layers_0_…` or,
//! from Kohya's trainers, `lora_unet_…`, which cannot be undone without the
//! model: they stay as they are until [`crate::resolve`] gives the modules
//! the model's own.

use crate::plan::peft_factorization;
use crate::{Adapter, Layer, ScaleRule, Scaling};
use kron_core::{Inner, KronShape, Outer};

use crate::lokr::{self, Factors, Parts};
use crate::matrix::Matrix;
use crate::tensor_data::{TensorData, serialize};
use crate::{Error, Format, Loaded, Result, Suggestion, Tensors};

/// What stands before a module's name: LyCORIS's own prefix, which we write, then those
/// of Kohya's trainers for a denoiser and for one text encoder or two.
const PREFIXES: [&str; 5] = ["lycoris_", "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"];

/// Reads a file.
///
/// # Errors
/// A tensor that is no part of a LoKr of a linear layer, and factors that do not fit.
pub(crate) fn read(tensors: &Tensors) -> Result<Loaded> {
    let names = tensors.names();
    let layers = lokr::group(tensors, &names, |name| {
        let (module, part) = name.rsplit_once('.')?;
        (lokr::NAMES.contains(&part) || part == "alpha").then_some((module, part))
    })?;
    let mut products = 0;
    let layers = layers.iter().map(|(module, parts)| {
        let factors = Factors::read(tensors, module, parts)?;
        products += usize::from(factors.rank1.is_some());
        let scaling = scaling(tensors, parts, &factors)?;
        Layer::new(*module, scaling, factors.theta)
            .map_err(|e| Error::data(format!("{}: {e}", tensors.path())))
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let adapter = Adapter::new(layers).map_err(|e| Error::data(format!("{}: {e}", tensors.path())))?;
    let notes = lokr::rounded(products).into_iter().collect();
    Ok(Loaded {
        path: tensors.path().into(),
        format: Format::LycorisLokr,
        adapter,
        fan_in_fan_out: false,
        notes,
    })
}

fn scaling(tensors: &Tensors, parts: &Parts, factors: &Factors) -> Result<Scaling> {
    let alpha = match parts.get("alpha") {
        None => None,
        Some(name) => match tensors.numbers(name)?[..] {
            [alpha] => Some(alpha as f32),
            _ => return Err(Error::data(format!("{}: {name} is one number", tensors.path()))),
        },
    };
    let refused = |e| Error::data(format!("{}: {e}", tensors.path()));
    let Some(rank) = factors.rank1.or(factors.rank2) else {
        return Scaling::plain(1.0).map_err(refused);
    };
    let alpha = alpha.filter(|alpha| *alpha != 0.0).unwrap_or(rank as f32);
    Scaling::new(alpha, rank, ScaleRule::AlphaOverR).map_err(refused)
}

/// The bytes of a file that LyCORIS loads.
///
/// # Errors
/// LoRA layers, a scale where both factors are full, and splits or ranks that
/// LyCORIS derives differently from the factors' sizes; all layers are looked at first.
pub(crate) fn write(adapter: &Adapter) -> Result<Vec<u8>> {
    let mut stored = Vec::new();
    for layer in adapter.layers() {
        check(layer)?;
        let module = name(layer.module());
        stored.extend(
            factors(layer).into_iter().map(|(part, m)| (format!("{module}.{part}"), TensorData::F32(m))),
        );
        let rank = layer.shape().rank().unwrap_or(1);
        let alpha = crate::algebra::scale64(layer.scaling()) * rank as f64;
        // LyCORIS takes an alpha of 0 for the rank, so a scale of 0 has no form.
        if alpha == 0.0 {
            return Err(Error::data(format!(
                "layer {} has a scale of 0, which LyCORIS cannot say: it takes an alpha of 0 for the rank",
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
    serialize(&stored)
}

/// The module's name as LyCORIS makes it; one that it made stays.
fn name(module: &str) -> String {
    match is_lycoris(module) {
        true => module.into(),
        false => format!("{}{}", PREFIXES[0], module.replace('.', "_")),
    }
}

/// Returns true if LyCORIS made the name.
pub fn is_lycoris(module: &str) -> bool {
    without_prefix(module).is_some()
}

/// Returns the module with underscores for dots, if LyCORIS made the name.
pub(crate) fn without_prefix(module: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)).filter(|flat| !flat.contains('.'))
}

/// A, then B and C or M, by LoKr's names.
pub(super) fn factors(layer: &Layer) -> Vec<(&'static str, Matrix)> {
    let (shape, theta) = (layer.shape(), layer.theta());
    let matrix = |rows, cols, data: &[f32]| Matrix { rows, cols, data: data.to_vec() };
    let a = ("lokr_w1", matrix(shape.a_out(), shape.a_in(), theta.a()));
    match shape.inner() {
        Inner::Full => vec![a, ("lokr_w2", matrix(shape.b_out(), shape.c_in(), theta.c()))],
        Inner::LowRank(r) => vec![
            a,
            ("lokr_w2_a", matrix(shape.b_out(), r, theta.b())),
            ("lokr_w2_b", matrix(r, shape.c_in(), theta.c())),
        ],
    }
}

fn check(layer: &Layer) -> Result<()> {
    let shape = layer.shape();
    let refused = |why: &str| {
        Error::data(format!("layer {} ({shape}) has no LyCORIS LoKr form: {why}", layer.module()))
    };
    if shape.outer() == Outer::One {
        return Err(refused("it is a LoRA, which has no outer factor").with(Suggestion::Lora));
    }
    match shape.inner() {
        Inner::Full => {
            let s = crate::algebra::scale64(layer.scaling());
            if s != 1.0 {
                return Err(refused(&format!("with two full factors LyCORIS takes s = 1, but s is {s}")));
            }
        }
        Inner::LowRank(r) if 2 * r >= shape.b_out().max(shape.c_in()) => {
            return Err(refused(&format!(
                "LyCORIS makes w2 full where r ≥ max(b_out, c_in)/2, and r is {r} with {} × {}",
                shape.b_out(),
                shape.c_in()
            )));
        }
        Inner::LowRank(_) => {}
    }
    let factor = factor(shape);
    let got = [shape.d_out(), shape.d_in()].map(|dim| factorization(dim, factor).0);
    if got != [shape.a_out(), shape.a_in()] {
        return Err(refused(&format!(
            "when it loads the file, LyCORIS splits the layer by {} × {}, not {} × {}",
            got[0],
            got[1],
            shape.a_out(),
            shape.a_in()
        )));
    }
    Ok(())
}

/// The factor that LyCORIS infers from w1 and w2 (`LokrModule.make_module_from_state_dict`).
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

/// As PEFT's, but always the smaller first.
fn factorization(dim: usize, factor: Option<usize>) -> (usize, usize) {
    let (m, n) = peft_factorization(dim, factor);
    (m.min(n), m.max(n))
}
