//! LoKr's tensors, which PEFT and LyCORIS name alike:
//!
//! ```text
//! A = lokr_w1 or lokr_w1_a·lokr_w1_b        B·C = lokr_w2_a·lokr_w2_b, or M = lokr_w2
//! ```

use std::collections::BTreeMap;

use kron_core::{Inner, KronShape, LayerDims, Outer, Split, Theta};

use crate::matrix::Matrix;
use crate::{Error, Result, Tensors};

/// The tensors of a layer by what follows the module's name.
pub type Parts<'a> = BTreeMap<&'a str, String>;

/// What a layer's tensors say.
pub struct Factors {
    pub theta: Theta,
    /// Columns of w1_a, where w1 is a product.
    pub rank1: Option<usize>,
    /// Columns of w2_a, where w2 is a product.
    pub rank2: Option<usize>,
}

/// The factors' names, and nothing else's.
pub const NAMES: [&str; 6] = ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"];

/// The largest outer factor that is multiplied out.
const MOST_PRODUCT: usize = 1 << 26;

/// Why a tensor that often stands beside the factors is refused.
pub fn reason(name: &str) -> &'static str {
    let tail = name.rsplit('.').next().unwrap_or(name);
    match tail {
        "lokr_t2" => "it is the Tucker core of a convolution, and only linear layers are supported",
        "dora_scale" | "lora_magnitude_vector" => "it belongs to DoRA, which rescales the whole weight",
        "lora_embedding_A" | "lora_embedding_B" => {
            "it belongs to an embedding, and only linear layers are supported"
        }
        "bias" => "biases are not part of ΔW",
        "weight" if name.contains("lora_magnitude_vector") => {
            "it belongs to DoRA, which rescales the whole weight"
        }
        _ => {
            "it is no factor of ΔW, and leaving it out would change the model (modules_to_save and other methods are not supported)"
        }
    }
}

impl Factors {
    /// Reads the factors of `module`.
    pub fn read(tensors: &Tensors, module: &str, parts: &Parts) -> Result<Self> {
        let (w1, rank1) = Pair::read(tensors, module, parts, "lokr_w1")?.joined(module)?;
        let (theta, rank2) = match Pair::read(tensors, module, parts, "lokr_w2")? {
            Pair::Full(m) => (theta(module, &w1, Inner::Full, &[], &m)?, None),
            Pair::Product(b, c) => (theta_low(module, &w1, &b, &c)?, Some(b.cols)),
        };
        Ok(Self { theta, rank1, rank2 })
    }
}

fn theta_low(module: &str, a: &Matrix, b: &Matrix, c: &Matrix) -> Result<Theta> {
    let shape = shape(module, a, (b.rows, c.cols), Inner::LowRank(b.cols))?;
    joined(module, shape, a, &b.data, c)
}

fn theta(module: &str, a: &Matrix, inner: Inner, b: &[f32], m: &Matrix) -> Result<Theta> {
    joined(module, shape(module, a, (m.rows, m.cols), inner)?, a, b, m)
}

fn shape(module: &str, a: &Matrix, (b_out, c_in): (usize, usize), inner: Inner) -> Result<KronShape> {
    let [d_out, d_in] = [a.rows.saturating_mul(b_out), a.cols.saturating_mul(c_in)];
    KronShape::new(LayerDims { d_out, d_in }, Split { a_out: a.rows, a_in: a.cols }, Outer::Trained, inner)
        .map_err(|e| Error::data(format!("layer {module} is refused: {e}")))
}

fn joined(module: &str, shape: KronShape, a: &Matrix, b: &[f32], c: &Matrix) -> Result<Theta> {
    Theta::from_factors(shape, &a.data, b, &c.data)
        .map_err(|e| Error::data(format!("layer {module} is refused: {e}")))
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
                        "{}: {left} has {} columns, but {right} has {} rows",
                        tensors.path(),
                        l.cols,
                        r.rows
                    )));
                }
                Ok(Pair::Product(l, r))
            }
            _ => Err(Error::data(format!(
                "{}: {module} needs either {name} or both {name}_a and {name}_b, but has {:?}",
                tensors.path(),
                parts.keys().collect::<Vec<_>>()
            ))),
        }
    }

    /// One matrix; a small file could ask for a product without bounds.
    fn joined(self, module: &str) -> Result<(Matrix, Option<usize>)> {
        let (l, r) = match self {
            Pair::Full(w) => return Ok((w, None)),
            Pair::Product(l, r) => (l, r),
        };
        if l.rows.checked_mul(r.cols).is_none_or(|len| len > MOST_PRODUCT) {
            return Err(Error::data(format!(
                "lokr_w1_a·lokr_w1_b of {module} is {} × {}, but the limit is {MOST_PRODUCT} numbers",
                l.rows, r.cols
            )));
        }
        Ok((l.product(&r), Some(l.cols)))
    }
}

/// Every layer's tensors by module; `split` gives a tensor's module and its name in it.
pub fn group<'a>(
    tensors: &Tensors,
    names: &'a [String],
    split: impl Fn(&'a str) -> Option<(&'a str, &'a str)>,
) -> Result<BTreeMap<&'a str, Parts<'a>>> {
    let mut layers: BTreeMap<&str, Parts> = BTreeMap::new();
    for name in names {
        let Some((module, part)) = split(name) else {
            return Err(Error::data(format!(
                "{}: tensor {name} is refused: {}",
                tensors.path(),
                reason(name)
            )));
        };
        layers.entry(module).or_default().insert(part, name.clone());
    }
    if layers.is_empty() {
        return Err(Error::data(format!(
            "{} has no tensors, but an adapter has at least one layer",
            tensors.path()
        )));
    }
    Ok(layers)
}

/// The note on outer factors that were products.
pub fn rounded(count: usize) -> Option<String> {
    (count > 0).then(|| {
        format!("A of {count} layers is the product lokr_w1_a·lokr_w1_b, summed in float64 and rounded once to float32")
    })
}
