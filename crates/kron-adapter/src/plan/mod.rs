//! Choosing an adapter's shape: a model's linear layers and a [`Method`] give a
//! [`Plan`], and a [`Budget`] gives the methods that come nearest to it.
//!
//! Everything here is a pure function on small printable values. Every method
//! is one product family, ΔW = s·A ⊗ M with M full or of low rank, so that a
//! planned layer is a [`KronShape`] and its counts follow from that alone:
//!
//! | method | A | inner factor |
//! |---|---|---|
//! | Kron-LoRA | a_out × a_in, one [`Split`] for the model | rank r |
//! | LoRA | \[1\] | rank r |
//! | KronA | a split, or near-square per layer | full |
//! | LoKr | PEFT's factorization of each side | rank r, or full where r is large |

mod budget;
mod presets;
mod split;

pub use budget::{Budget, Choice, Family, search};
pub use presets::{PRESETS, preset};
pub use split::{
    Fitted, LayerSide, Note, divisors, fit_split, legal_splits, paper_split, peft_factorization,
};

use crate::{Error, Result};
use kron_core::{Inner, KronShape, LayerDims, Outer, Split};

/// The largest dimension that a plan accepts: every search over divisors takes
/// at most the square root of it.
pub const MAX_DIM: usize = 1 << 28;

/// A kind of linear layer, and how many of it the model has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    name: String,
    dims: LayerDims,
    count: u32,
}

impl Linear {
    /// `count` layers of these dimensions.
    ///
    /// # Errors
    /// A dimension of 0 or above [`MAX_DIM`], or a count of 0.
    pub fn new(name: impl Into<String>, dims: LayerDims, count: u32) -> Result<Self> {
        let name = name.into();
        check_dim(&format!("d_out of {name}"), dims.d_out)?;
        check_dim(&format!("d_in of {name}"), dims.d_in)?;
        if count == 0 {
            return Err(Error::data(format!("the count of {name} is 0, but a layer occurs at least once")));
        }
        Ok(Self { name, dims, count })
    }

    /// Name of the layer, such as `q_proj`.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Width of the output and of the input.
    pub const fn dims(&self) -> LayerDims {
        self.dims
    }
    /// Number of such layers in the model.
    pub const fn count(&self) -> u32 {
        self.count
    }
}

/// The linear layers that an adapter trains, and what else is trained with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    name: String,
    hidden: usize,
    linears: Vec<Linear>,
    also_trained: u64,
}

impl Model {
    /// A model of hidden size `hidden`; `also_trained` counts the parameters
    /// trained without an adapter, such as a new classification head.
    ///
    /// # Errors
    /// No layer at all, or a hidden size of 0 or above [`MAX_DIM`].
    pub fn new(
        name: impl Into<String>,
        hidden: usize,
        linears: Vec<Linear>,
        also_trained: u64,
    ) -> Result<Self> {
        let name = name.into();
        check_dim(&format!("hidden size of {name}"), hidden)?;
        if linears.is_empty() {
            return Err(Error::data(format!("{name} has no linear layer, but a plan is for at least one")));
        }
        Ok(Self { name, hidden, linears, also_trained })
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The hidden size, from which the paper takes its split.
    pub const fn hidden(&self) -> usize {
        self.hidden
    }
    /// The adapted layers.
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }
    /// Parameters trained without an adapter.
    pub const fn also_trained(&self) -> u64 {
        self.also_trained
    }
}

fn check_dim(what: &str, dim: usize) -> Result<()> {
    if (1..=MAX_DIM).contains(&dim) {
        return Ok(());
    }
    Err(Error::data(format!("{what} is {dim}, but a dimension is between 1 and {MAX_DIM}")))
}

/// How a layer is adapted: a rule that gives every layer its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Kron-LoRA.
    Kron {
        /// The outer factor wished for on every layer.
        split: Split,
        /// r.
        rank: usize,
    },
    /// LoRA.
    Lora {
        /// r.
        rank: usize,
    },
    /// KronA (arXiv 2212.10650): a full inner factor.
    Krona {
        /// The outer factor wished for, or `None` for the near-square split of each side.
        split: Option<Split>,
    },
    /// LoKr as PEFT shapes it, with A in full.
    Lokr {
        /// `decompose_factor`; `None` is PEFT's −1, near-square.
        factor: Option<usize>,
        /// r.
        rank: usize,
    },
}

impl Method {
    /// The paper's Kron-LoRA (arXiv 2508.01961): [`paper_split`] of the hidden size.
    pub fn paper(model: &Model, rank: usize) -> Self {
        Method::Kron { split: paper_split(model.hidden()), rank }
    }

    /// The same method with another rank; KronA has none and stays as it is.
    pub const fn with_rank(self, rank: usize) -> Self {
        match self {
            Method::Kron { split, .. } => Method::Kron { split, rank },
            Method::Lora { .. } => Method::Lora { rank },
            Method::Krona { split } => Method::Krona { split },
            Method::Lokr { factor, .. } => Method::Lokr { factor, rank },
        }
    }

    /// Returns the shape on a layer of these dimensions, with what had to give way for it.
    ///
    /// # Errors
    /// A split, factor or rank of 0, and what [`KronShape::new`] refuses.
    pub fn fit(self, dims: LayerDims) -> Result<Fitted> {
        match self {
            Method::Kron { split, rank } => fit_split(split, dims, Inner::LowRank(rank)),
            Method::Lora { rank } => Ok(KronShape::lora(dims, rank)?.into()),
            Method::Krona { split: Some(split) } => fit_split(split, dims, Inner::Full),
            Method::Krona { split: None } => Ok(peft_shape(dims, None, Inner::Full)?.into()),
            Method::Lokr { factor, rank } => {
                let shape = peft_shape(dims, factor, Inner::LowRank(rank))?;
                if rank <= lokr_max_rank(&shape) {
                    return Ok(shape.into());
                }
                let note = Note::RankBecameFull { rank, limit: lokr_max_rank(&shape) };
                let shape = peft_shape(dims, factor, Inner::Full)?;
                Ok(Fitted { shape, notes: vec![note] })
            }
        }
    }
}

/// The shape whose outer factor is PEFT's factorization of each side.
fn peft_shape(dims: LayerDims, factor: Option<usize>, inner: Inner) -> Result<KronShape> {
    if factor == Some(0) {
        return Err(Error::data("LoKr's factor is 0, but a factor is at least 1"));
    }
    let (a_out, _) = peft_factorization(dims.d_out, factor);
    let (a_in, _) = peft_factorization(dims.d_in, factor);
    Ok(KronShape::new(dims, Split { a_out, a_in }, Outer::Trained, inner)?)
}

/// The largest rank for which PEFT keeps LoKr's inner factor decomposed: r < max(b_out, c_in)/2.
fn lokr_max_rank(shape: &KronShape) -> usize {
    (shape.b_out().max(shape.c_in()) - 1) / 2
}

impl std::fmt::Display for Method {
    /// `kron (2, 16) r 8` · `lora r 8` · `krona near-square` · `lokr factor 4 r 8`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Method::Kron { split, rank } => write!(f, "kron {split} r {rank}"),
            Method::Lora { rank } => write!(f, "lora r {rank}"),
            Method::Krona { split: Some(split) } => write!(f, "krona {split}"),
            Method::Krona { split: None } => write!(f, "krona near-square"),
            Method::Lokr { factor: Some(factor), rank } => write!(f, "lokr factor {factor} r {rank}"),
            Method::Lokr { factor: None, rank } => write!(f, "lokr near-square r {rank}"),
        }
    }
}

/// One method on one model: a shape for every layer, and the counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What was planned.
    pub method: Method,
    /// One row per kind of layer, in the model's order.
    pub rows: Vec<Row>,
    /// Parameters trained without an adapter.
    pub also_trained: u64,
}

/// A layer with the shape of its adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The layer and its multiplicity.
    pub linear: Linear,
    /// The adapter's shape on it.
    pub shape: KronShape,
    /// Where the method could not be followed to the letter.
    pub notes: Vec<Note>,
}

impl Plan {
    /// Gives every layer its shape.
    ///
    /// # Errors
    /// As [`Method::fit`].
    pub fn new(model: &Model, method: Method) -> Result<Self> {
        let rows = model.linears.iter().map(|linear| {
            let Fitted { shape, notes } = method.fit(linear.dims)?;
            Ok(Row { linear: linear.clone(), shape, notes })
        });
        Ok(Self { method, rows: rows.collect::<Result<_>>()?, also_trained: model.also_trained })
    }

    /// Parameters of all adapters.
    pub fn adapter_params(&self) -> u128 {
        self.sum(|shape| shape.params() as u128)
    }
    /// Parameters that the optimizer sees: the adapters' and those trained without one.
    pub fn trained_params(&self) -> u128 {
        self.adapter_params() + u128::from(self.also_trained)
    }
    /// Bytes of all adapters, in float32.
    pub fn adapter_bytes(&self) -> u128 {
        4 * self.adapter_params()
    }
    /// Bytes of Adam's two moments, in float32, for everything trained.
    pub fn optimizer_bytes(&self) -> u128 {
        8 * self.trained_params()
    }
    /// Multiply-adds of all adapters, forward, per token.
    pub fn multiply_adds(&self) -> u128 {
        self.sum(multiply_adds)
    }
    /// Bytes kept for backward by all adapters, per token: T in float32.
    pub fn saved_bytes(&self) -> u128 {
        self.sum(|shape| 4 * saved_elements(shape))
    }
    /// Sum over the layers of the upper bound of rank(ΔW).
    pub fn rank_sum(&self) -> u128 {
        self.sum(|shape| shape.max_rank() as u128)
    }
    /// Whether every layer has exactly the split and rank that the method names.
    pub fn is_exact(&self) -> bool {
        self.rows.iter().all(|row| row.notes.is_empty())
    }

    fn sum(&self, of: impl Fn(&KronShape) -> u128) -> u128 {
        self.rows.iter().map(|row| u128::from(row.linear.count) * of(&row.shape)).sum()
    }
}

/// Multiply-adds of one layer's forward pass per token: T = X·Cᵀ, U = A·T, Y += U·Bᵀ.
///
/// LoRA's A = \[1\] and the missing B of a full inner factor cost nothing.
pub fn multiply_adds(shape: &KronShape) -> u128 {
    let [a_out, a_in, b_out, c_in, width] =
        [shape.a_out(), shape.a_in(), shape.b_out(), shape.c_in(), shape.width()].map(|n| n as u128);
    let t = a_in * width * c_in;
    let u = if shape.outer() == Outer::One { 0 } else { a_out * a_in * width };
    let y = if shape.rank().is_some() { a_out * width * b_out } else { 0 };
    t + u + y
}

/// Elements of T that one layer keeps for backward per token, a_in·r.
pub const fn saved_elements(shape: &KronShape) -> u128 {
    shape.a_in() as u128 * shape.width() as u128
}
