//! LoKr's tensors, which PEFT and LyCORIS name alike, and the checks that both need:
//!
//! ```text
//! A = lokr_w1 or lokr_w1_a·lokr_w1_b        B·C = lokr_w2_a·lokr_w2_b, or M = lokr_w2
//! ```

use std::collections::BTreeMap;

use kron_core::{Inner, KronShape, LayerDims, Outer, Split, Theta};

use crate::elements::first_not_finite;
use crate::limits::Limits;
use crate::matrix::Matrix;
use crate::{Error, Layer, Result, Suggestion, Tensors, text};

/// The tensors of a layer, by the rest of the name after the module.
pub type Parts<'a> = BTreeMap<&'a str, String>;

/// The factors of one layer.
pub struct Factors {
    pub theta: Theta,
    /// Columns of w1_a, where w1 is a product.
    pub rank1: Option<usize>,
    /// Columns of w2_a, where w2 is a product.
    pub rank2: Option<usize>,
}

/// Names of the factors.
pub const NAMES: [&str; 6] = ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"];

/// Returns why a tensor is refused: the reason for one that often accompanies the factors, or else `otherwise`.
pub fn reason(name: &str, otherwise: &'static str) -> &'static str {
    let tail = name.rsplit('.').next().unwrap_or(name);
    match tail {
        "lokr_t2" => "it is the Tucker core of a convolution, and only linear layers are supported",
        "dora_scale" | "lora_magnitude_vector" => "it belongs to DoRA, which rescales the whole weight",
        "lora_embedding_A" | "lora_embedding_B" => {
            "it belongs to an embedding, and only linear layers are supported"
        }
        "bias" => "biases are not part of ΔW",
        "weight" if name.ends_with(".base_layer.weight") => {
            "it is a copy of a base weight beside the factors of an embedding, and only linear layers are supported"
        }
        "weight" if name.ends_with("lora_mid.weight") => {
            "it is the Tucker core of a convolution, and only linear layers are supported"
        }
        "weight" if name.contains("lora_magnitude_vector") => {
            "it belongs to DoRA, which rescales the whole weight"
        }
        _ => otherwise,
    }
}

impl Factors {
    /// Reads the factors of `module`; a product is taken from the limits.
    pub fn read(tensors: &Tensors, module: &str, parts: &Parts, of: &mut Limits) -> Result<Self> {
        let (w1, rank1) = Pair::read(tensors, module, parts, "lokr_w1")?
            .joined(module, of)
            .map_err(|e| e.about(tensors.path()))?;
        let (theta, rank2) = match Pair::read(tensors, module, parts, "lokr_w2")? {
            Pair::Full(m) => (theta(module, &w1, None, &m)?, None),
            Pair::Product(b, c) => (theta(module, &w1, Some(&b), &c)?, Some(b.cols)),
        };
        Ok(Self { theta, rank1, rank2 })
    }
}

/// θ of w1, and of w2 as B·C or as M.
fn theta(module: &str, a: &Matrix, b: Option<&Matrix>, c: &Matrix) -> Result<Theta> {
    let (b_out, inner) = b.map_or((c.rows, Inner::Full), |b| (b.rows, Inner::LowRank(b.cols)));
    let layer = LayerDims { d_out: a.rows.saturating_mul(b_out), d_in: a.cols.saturating_mul(c.cols) };
    let split = Split { a_out: a.rows, a_in: a.cols };
    KronShape::new(layer, split, Outer::Trained, inner)
        .and_then(|shape| Theta::from_factors(shape, &a.data, b.map_or(&[], |b| &b.data), &c.data))
        .map_err(|e| Error::data(format!("layer {} is refused: {e}", text::name(module))))
}

/// w1 or w2.
enum Pair {
    Full(Matrix),
    Product(Matrix, Matrix),
}

impl Pair {
    fn read(tensors: &Tensors, module: &str, parts: &Parts, name: &str) -> Result<Self> {
        let [left, right] = ["_a", "_b"].map(|end| parts.get(format!("{name}{end}").as_str()));
        match (parts.get(name), left, right) {
            (Some(full), None, None) => Ok(Pair::Full(Matrix::read(tensors, full)?)),
            (None, Some(left), Some(right)) => {
                let (l, r) = (Matrix::read(tensors, left)?, Matrix::read(tensors, right)?);
                if l.cols != r.rows {
                    return Err(Error::data(format!(
                        "{}: {} has {} columns, but {} has {} rows",
                        tensors.path(),
                        text::name(left),
                        l.cols,
                        text::name(right),
                        r.rows
                    )));
                }
                Ok(Pair::Product(l, r))
            }
            _ => Err(Error::data(format!(
                "{}: {} needs either {name} or both {name}_a and {name}_b, but has {:?}",
                tensors.path(),
                text::name(module),
                parts.keys().collect::<Vec<_>>()
            ))),
        }
    }

    /// Returns one matrix, and the rank of a product. A product is limited, because a
    /// small file could ask for any size.
    fn joined(self, module: &str, of: &mut Limits) -> Result<(Matrix, Option<usize>)> {
        let (l, r) = match self {
            Pair::Full(w) => return Ok((w, None)),
            Pair::Product(l, r) => (l, r),
        };
        let what = format!("lokr_w1_a·lokr_w1_b of {}, {} × {},", text::name(module), l.rows, r.cols);
        of.bytes.spend(&what, 4 * l.rows as u128 * r.cols as u128)?;
        of.work.spend(&what, l.product_work(&r))?;
        let product = l.product(&r);
        // It may overflow, though each factor is finite.
        if let Some(at) = first_not_finite(&product.data) {
            return Err(Error::data(format!(
                "a product of the factors of {} is {}, but it has to be finite in float32",
                text::name(module),
                product.data[at]
            )));
        }
        Ok((product, Some(l.cols)))
    }
}

/// Groups tensors by module; `split` returns a tensor's module and its name in it, and `otherwise` is the reason
/// against tensors that it does not know.
pub fn group<'a>(
    tensors: &Tensors,
    names: &'a [String],
    otherwise: &'static str,
    split: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
) -> Result<BTreeMap<&'a str, Parts<'a>>> {
    let mut layers: BTreeMap<&str, Parts> = BTreeMap::new();
    for name in names {
        let Some((module, part)) = split(name) else {
            return Err(Error::data(format!(
                "{}: tensor {} is refused: {}",
                tensors.path(),
                text::name(name),
                reason(name, otherwise)
            )));
        };
        if let Some(other) = layers.entry(module).or_default().insert(part, name.clone()) {
            return Err(Error::data(format!(
                "{}: {} and {} are one factor of {}",
                tensors.path(),
                text::name(&other),
                text::name(name),
                text::name(module)
            )));
        }
    }
    if layers.is_empty() {
        return Err(Error::data(format!(
            "{} has no tensors, but an adapter has at least one layer",
            tensors.path()
        )));
    }
    Ok(layers)
}

/// Returns the note on outer factors that were products.
pub fn rounded(count: usize) -> Option<String> {
    (count > 0).then(|| {
        format!("A of {count} layers is the product lokr_w1_a·lokr_w1_b, summed in float64 and rounded once to float32")
    })
}

/// Returns A, then B and C or M, by LoKr's names.
pub fn factors(layer: &Layer) -> Vec<(&'static str, Matrix)> {
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

/// A module and the shape of its layer.
pub type Shaped<'a> = (&'a str, KronShape);

/// Returns a layer's module and shape.
pub fn shaped(layer: &Layer) -> Shaped<'_> {
    (layer.module(), *layer.shape())
}

/// Returns the error about a layer that `program` cannot load as a LoKr.
pub fn refused((module, shape): Shaped, program: &str, why: &str) -> Error {
    Error::data(format!("layer {module} ({shape}) has no {program} LoKr form: {why}"))
}

/// Checks that a layer has an outer factor, and a rank that `program` does not make full.
pub fn check(layer: Shaped, program: &str) -> Result<()> {
    let (_, shape) = layer;
    if shape.outer() == Outer::One {
        let why = "it is a LoRA, which has no outer factor";
        return Err(refused(layer, program, why).with(Suggestion::Lora));
    }
    match shape.inner() {
        Inner::LowRank(r) if 2 * r >= shape.b_out().max(shape.c_in()) => {
            let why = format!(
                "{program} makes w2 full where r ≥ max(b_out, c_in)/2, and r is {r} with {} × {}",
                shape.b_out(),
                shape.c_in()
            );
            Err(refused(layer, program, &why).with(Suggestion::LosslessLora))
        }
        _ => Ok(()),
    }
}
