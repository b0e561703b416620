//! Rules that give every layer its shape.

use kron_core::{Inner, KronShape, LayerDims, Outer, Split};

use super::model::Model;
use super::split::{Fitted, Note, fit_split, paper_split, peft_factorization};
use crate::{Error, Result};

/// A rule that gives every layer its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Kron-LoRA.
    Kron {
        /// The outer factor requested on every layer.
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
        /// The requested outer factor, or `None` for the near-square split of each side.
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
    /// Returns the paper's Kron-LoRA (arXiv 2508.01961): [`paper_split`] of the hidden size.
    pub fn paper(model: &Model, rank: usize) -> Self {
        Method::Kron { split: paper_split(model.hidden()), rank }
    }

    /// Returns the same method with another rank; KronA has no rank and stays as it is.
    pub const fn with_rank(self, rank: usize) -> Self {
        match self {
            Method::Kron { split, .. } => Method::Kron { split, rank },
            Method::Lora { .. } => Method::Lora { rank },
            Method::Krona { split } => Method::Krona { split },
            Method::Lokr { factor, .. } => Method::Lokr { factor, rank },
        }
    }

    /// Returns the shape on a layer of these dimensions, with its deviations from the method.
    ///
    /// # Errors
    /// Fails on a split, factor or rank of 0, and as [`KronShape::new`] does.
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

/// Returns the shape whose outer factor is PEFT's factorization of each side.
fn peft_shape(dims: LayerDims, factor: Option<usize>, inner: Inner) -> Result<KronShape> {
    if factor == Some(0) {
        return Err(Error::data("LoKr's factor is 0, but a factor is at least 1"));
    }
    let (a_out, _) = peft_factorization(dims.d_out, factor);
    let (a_in, _) = peft_factorization(dims.d_in, factor);
    Ok(KronShape::new(dims, Split { a_out, a_in }, Outer::Trained, inner)?)
}

/// Returns the largest rank for which PEFT keeps LoKr's inner factor decomposed: r < max(b_out, c_in)/2.
pub(super) fn lokr_max_rank(shape: &KronShape) -> usize {
    (shape.b_out().max(shape.c_in()) - 1) / 2
}

impl std::fmt::Display for Method {
    /// `kron 16×2 r 8` · `lora r 8` · `krona near-square` · `lokr factor 4 r 8`
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
