//! Legal sizes of the outer factor, and the rules that choose one.

use kron_core::{Inner, KronShape, LayerDims, Outer, Split};

use super::model::Linear;
use crate::Result;

/// One side of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerSide {
    /// d_in = a_in·c_in.
    In,
    /// d_out = a_out·b_out.
    Out,
}

/// A layer's shape, with its deviations from the request.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The shape.
    pub shape: KronShape,
    /// Deviations; empty if the method was followed exactly.
    pub notes: Vec<Note>,
}

/// A deviation of a layer's shape from the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    /// The requested side of A does not divide the layer, so the largest divisor below it was taken.
    Reduced {
        /// The side.
        side: LayerSide,
        /// d_in or d_out.
        dim: usize,
        /// The request.
        wanted: usize,
        /// The size taken instead.
        taken: usize,
    },
    /// LoKr in PEFT: above the limit PEFT keeps the inner factor full and ignores the rank.
    RankBecameFull {
        /// The request.
        rank: usize,
        /// The largest rank that would have been kept.
        limit: usize,
    },
}

/// A of a Kron-LoRA for which nothing else is asked: of 2 × 2, 4 × 4 and 8 × 8 the one with the lowest loss at equal
/// parameters in the curves of capacity of docs/RESULTS.md, from 12 thousand parameters on.
pub const DEFAULT_SPLIT: Split = Split { a_out: 2, a_in: 2 };

/// Returns the paper's split (arXiv 2508.01961): a_in = 2, and a_out the divisor of
/// `hidden` nearest to round(hidden / 200), the smaller of two equally near.
pub fn paper_split(hidden: usize) -> Split {
    let target = hidden / 200 + usize::from(hidden % 200 >= 100);
    let a_out = divisors(hidden).into_iter().min_by_key(|d| d.abs_diff(target)).unwrap_or(1);
    Split { a_out, a_in: 2 }
}

/// Returns every split that divides a layer, ordered by a_in, then a_out.
pub fn legal_splits(linear: &Linear) -> impl Iterator<Item = Split> {
    let outs = divisors(linear.dims().d_out);
    divisors(linear.dims().d_in)
        .into_iter()
        .flat_map(move |a_in| outs.clone().into_iter().map(move |a_out| Split { a_out, a_in }))
}

/// Returns the shape of a layer under the split `wanted`, each side reduced to the largest
/// divisor of the layer that does not exceed it.
///
/// # Errors
/// Fails on a side of 0, and as [`KronShape::new`] does.
pub fn fit_split(wanted: Split, dims: LayerDims, inner: Inner) -> Result<Fitted> {
    let sides = [(LayerSide::Out, dims.d_out, wanted.a_out), (LayerSide::In, dims.d_in, wanted.a_in)];
    let [a_out, a_in] = sides.map(|(_, dim, wanted)| largest_divisor_within(dim, wanted));
    let notes = sides.into_iter().zip([a_out, a_in]).filter(|((_, _, wanted), taken)| wanted != taken);
    let notes = notes.map(|((side, dim, wanted), taken)| Note::Reduced { side, dim, wanted, taken });
    let shape = KronShape::new(dims, Split { a_out, a_in }, Outer::Trained, inner)?;
    Ok(Fitted { shape, notes: notes.collect() })
}

/// Returns the divisors of `n` in ascending order, in √n steps; an empty list for 0.
///
/// ```
/// assert_eq!(kron_adapter::plan::divisors(12), [1, 2, 3, 4, 6, 12]);
/// ```
pub fn divisors(n: usize) -> Vec<usize> {
    let mut low: Vec<usize> = (1..=n.isqrt()).filter(|d| n.is_multiple_of(*d)).collect();
    let high: Vec<usize> = low.iter().rev().map(|d| n / d).filter(|d| d * d > n).collect();
    low.extend(high);
    low
}

/// Returns the largest divisor of `n` that is at most `limit`; 0 if `limit` is 0.
fn largest_divisor_within(n: usize, limit: usize) -> usize {
    // The common case of a search, without listing the divisors.
    if limit > 0 && n.is_multiple_of(limit) {
        return limit;
    }
    largest_within(&divisors(n), limit)
}

/// Returns the largest of some ascending numbers that is at most `limit`, or 0.
fn largest_within(ascending: &[usize], limit: usize) -> usize {
    let within = ascending.partition_point(|d| *d <= limit);
    if within == 0 { 0 } else { ascending[within - 1] }
}

/// Splits a side of a LoKr layer as PEFT does (peft 0.21.2, `factorization`); the
/// first factor belongs to A.
///
/// A factor that divides `dim` is taken as it is, even above √dim; otherwise
/// the pair is the most nearly square one whose smaller, first member does not
/// exceed the factor. `None` is PEFT's −1: no limit.
pub fn peft_factorization(dim: usize, factor: Option<usize>) -> (usize, usize) {
    let first = match factor {
        Some(factor) if factor > 0 && dim.is_multiple_of(factor) => factor,
        _ => largest_divisor_within(dim, peft_limit(dim, factor)),
    };
    (first, dim.checked_div(first).unwrap_or(0))
}

/// Returns the first factor of [`peft_factorization`], if the divisors of `dim` are known.
pub(crate) fn peft_first(divisors: &[usize], dim: usize, factor: Option<usize>) -> usize {
    match factor {
        Some(factor) if factor > 0 && dim.is_multiple_of(factor) => factor,
        _ => largest_within(divisors, peft_limit(dim, factor)),
    }
}

fn peft_limit(dim: usize, factor: Option<usize>) -> usize {
    factor.map_or(dim.isqrt(), |factor| factor.clamp(1, dim.isqrt().max(1)))
}

impl From<KronShape> for Fitted {
    /// Wraps a shape without deviations.
    fn from(shape: KronShape) -> Self {
        Self { shape, notes: Vec::new() }
    }
}

impl std::fmt::Display for Note {
    /// `a_out is 1 instead of 4, which does not divide d_out = 50257`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Note::Reduced { side, dim, wanted, taken } => {
                let (a, d) = match side {
                    LayerSide::In => ("a_in", "d_in"),
                    LayerSide::Out => ("a_out", "d_out"),
                };
                write!(f, "{a} is {taken} instead of {wanted}, which does not divide {d} = {dim}")
            }
            Note::RankBecameFull { rank, limit } => {
                write!(f, "the inner factor is full, because rank {rank} is above PEFT's limit of {limit}")
            }
        }
    }
}
