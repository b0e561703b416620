//! Errors of our results, their bounds, and the verdicts.

use std::collections::BTreeMap;

use kron_adapter::with_dtype;
use kron_core::{Dtype, Element};
use serde::Serialize;

use super::case::Case;
use super::formulas;
use super::quantity::{Outputs, Quantity};

/// Bound of an output's error, as a multiple of its peers' largest error.
const OUTPUT: f64 = 2.0;
/// Bound of the error of a factor's gradient, likewise.
const GRADIENT: f64 = 3.0;

/// Number of elements below which an output's error depends on chance.
const SMALL: usize = 64;

/// Relative distance of an output from the reference, in two norms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// √Σ(got − want)² / √Σwant²; shows a systematic error.
    pub frobenius: f64,
    /// max|got − want| / max|want|; shows one wrong element in a large output.
    pub largest: f64,
}

/// Comparison of one output of one case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The output.
    pub tensor: Quantity,
    /// Our errors.
    pub ours: Errors,
    /// Errors of the frameworks, by prefix.
    pub frameworks: BTreeMap<String, Errors>,
    /// Errors of a plain float32 computation whose outputs are rounded to the dtype.
    pub plain: Errors,
    /// Errors of the stored reference itself, against the formulas in float64.
    pub reference: Errors,
    /// Bounds of our errors.
    pub bound: Errors,
    /// Larger of the two ratios of our error to its bound.
    pub share: f64,
    /// Outcome.
    pub verdict: Verdict,
}

/// Outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Our error is within the bound.
    Ok,
    /// Our error is beyond the bound.
    OutOfBounds,
    /// The stored reference is not the float64 result rounded to float32, so that agreeing with it proves
    /// nothing.
    WrongReference,
}

impl Verdict {
    /// Returns the word in the table.
    pub const fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::OutOfBounds => "FAIL",
            Verdict::WrongReference => "FAIL ref",
        }
    }
}

/// Compares our outputs of a case with its reference.
pub fn judge(case: &Case, ours: &Outputs) -> Vec<Row> {
    let exact = formulas::solve::<f64>(case, |v| v);
    let plain = formulas::solve::<f32>(case, |v| round(case.dtype, v));
    let row = |(&q, want): (&Quantity, &Vec<f64>)| {
        let errors = |from: &Outputs| from.get(&q).map(|got| Errors::of(got, want));
        let frameworks =
            case.frameworks.iter().filter_map(|(name, from)| Some((name.clone(), errors(from)?)));
        let frameworks = frameworks.collect();
        let ours = errors(ours).unwrap_or(Errors::UNKNOWN);
        let plain = errors(&plain).unwrap_or(Errors::UNKNOWN);
        let reference = exact.get(&q).map_or(Errors::UNKNOWN, |exact| Errors::of(want, exact));
        let factor = if q.is_gradient() { GRADIENT } else { OUTPUT };
        let bound = peers(case.dtype, want.len(), &frameworks, plain).times(factor);
        let share = ours.share(bound);
        let verdict = verdict(share, reference);
        Row { tensor: q, ours, frameworks, plain, reference, bound, share, verdict }
    };
    case.reference.iter().map(row).collect()
}

/// Returns the largest error of the peers that compute the same up to rounding, and at least one rounding.
fn peers(dtype: Dtype, len: usize, frameworks: &BTreeMap<String, Errors>, plain: Errors) -> Errors {
    let once = Errors::once(dtype);
    let plain = if plain.agree(dtype) { plain } else { once };
    match frameworks.values().filter(|e| e.agree(dtype)).copied().reduce(Errors::max) {
        // A single peer may be accurate by chance.
        Some(peers) if len < SMALL => peers.max(plain),
        Some(peers) => Errors { largest: larger(peers.largest, plain.largest), ..peers },
        None => plain,
    }
    .max(once)
}

fn verdict(share: f64, reference: Errors) -> Verdict {
    let exceeds = |share: f64, limit: f64| share.is_nan() || share > limit;
    if exceeds(share, 1.0) {
        Verdict::OutOfBounds
    } else if exceeds(reference.share(Errors::once(Dtype::F32)), OUTPUT) {
        Verdict::WrongReference
    } else {
        Verdict::Ok
    }
}

impl Errors {
    /// Errors of a missing result, beyond every bound.
    const UNKNOWN: Self = Self { frobenius: f64::NAN, largest: f64::NAN };

    /// Returns the largest error of one rounding to the dtype.
    fn once(dtype: Dtype) -> Self {
        Self { frobenius: dtype.unit_roundoff(), largest: dtype.unit_roundoff() }
    }

    /// Returns the errors of `got`.
    pub fn of(got: &[f64], want: &[f64]) -> Self {
        let (mut error, mut size) = ((0.0, 0.0f64), (0.0, 0.0f64));
        for (got, want) in got.iter().zip(want) {
            let e = (got - want).abs();
            error = (error.0 + e * e, larger(error.1, e));
            size = (size.0 + want * want, larger(size.1, want.abs()));
        }
        Self { frobenius: ratio(error.0, size.0).sqrt(), largest: ratio(error.1, size.1) }
    }

    /// Returns true if at most half of the dtype's digits are lost. A result that lost more was computed
    /// differently, for example with another scale, and its error is not rounding.
    pub fn agree(&self, dtype: Dtype) -> bool {
        self.frobenius <= dtype.unit_roundoff().sqrt()
    }

    fn max(self, other: Self) -> Self {
        Self {
            frobenius: larger(self.frobenius, other.frobenius),
            largest: larger(self.largest, other.largest),
        }
    }

    fn times(self, factor: f64) -> Self {
        Self { frobenius: factor * self.frobenius, largest: factor * self.largest }
    }

    fn share(self, bound: Self) -> f64 {
        larger(self.frobenius / bound.frobenius, self.largest / bound.largest)
    }
}

/// Returns the larger value, or NaN if `a` is NaN.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Returns error / size, and 0 for 0 / 0.
fn ratio(error: f64, size: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / size }
}

fn round(dtype: Dtype, v: f64) -> f64 {
    with_dtype!(dtype, E => E::from_f32(v as f32).to_f32().into())
}
