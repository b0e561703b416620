//! Axes: labels, scales, ranges and ticks.

use crate::text::{clean, short};

/// Number of ticks that an axis has at most, if nothing else is said.
const MAX_TICKS: usize = 8;

/// Share of a logarithmic axis between two ticks, at least.
const MIN_GAP: f64 = 0.09;

/// Characters of a tick's label; a longer one is cut.
const MAX_LABEL: usize = 14;

/// Sizes within which sums and differences of values are finite and exact enough.
const SMALLEST: f64 = 1e-150;
const LARGEST: f64 = 1e150;

/// An axis: what it shows, and how.
///
/// # Examples
/// ```
/// use kron_report::Axis;
///
/// let rows = Axis::log("rows").format(|v| format!("{v:.0}"));
/// let step = Axis::linear("step").whole();
/// # let _ = (rows, step);
/// ```
#[derive(Clone, Debug)]
pub struct Axis {
    pub(crate) label: String,
    log: bool,
    whole: bool,
    max_ticks: usize,
    format: fn(f64) -> String,
}

/// The part of an axis that is drawn, in drawing coordinates: log10 of the values on a logarithmic axis.
#[derive(Debug)]
pub(crate) struct Scale {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Makes an axis in proportion to the values.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: clean(label), log: false, whole: false, max_ticks: MAX_TICKS, format: short }
    }

    /// Makes a logarithmic axis; values that are not positive have no place on it.
    pub fn log(label: impl Into<String>) -> Self {
        Self { log: true, ..Self::linear(label) }
    }

    /// Puts ticks at whole numbers alone.
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    pub(crate) fn max_ticks(self, max_ticks: usize) -> Self {
        Self { max_ticks, ..self }
    }

    /// Sets the text of a tick.
    pub fn format(self, format: fn(f64) -> String) -> Self {
        Self { format, ..self }
    }

    /// Returns a value's drawing coordinate, or `None` for a value that the axis cannot show.
    pub(crate) fn coordinate(&self, v: f64) -> Option<f64> {
        match self.log {
            true => (SMALLEST..=LARGEST).contains(&v).then(|| v.log10()),
            false => (v.abs() <= LARGEST).then_some(if v.abs() < SMALLEST { 0.0 } else { v }),
        }
    }

    /// Returns the place of zero, which is below any value of a logarithmic axis.
    pub(crate) fn base(&self) -> f64 {
        if self.log { f64::NEG_INFINITY } else { 0.0 }
    }

    /// Finds range and ticks for these drawing coordinates.
    pub(crate) fn scale(&self, places: impl Iterator<Item = f64>) -> Scale {
        let (low, high) = places.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // An axis has a length, also where all values are the same.
        let middle = (low.abs().max(high.abs())).max(SMALLEST);
        let pad = match (high - low > 1e-9 * middle, self.log) {
            (true, true) => (0.05 * (high - low)).max(0.1),
            (true, false) => 0.04 * (high - low),
            (false, true) => 0.3,
            (false, false) if low == 0.0 || self.whole => 0.5 + 1e-6 * middle,
            (false, false) => 0.1 * middle,
        };
        // A bar stands on its axis.
        let low = if low == 0.0 && !self.log && high > 0.0 { 0.0 } else { low - pad };
        let high = high + pad;
        let ticks = if self.log { self.decades(low, high) } else { self.steps(low, high) };
        let label = |v: f64| clean((self.format)(v)).chars().take(MAX_LABEL).collect();
        let ticks = ticks.into_iter().filter_map(|v| Some((self.coordinate(v)?, label(v))));
        let mut ticks: Vec<(f64, String)> = ticks.filter(|(at, _)| (low..=high).contains(at)).collect();
        if self.log {
            let mut last = f64::NEG_INFINITY;
            ticks.retain(|(at, _)| {
                let apart = at - last >= MIN_GAP * (high - low);
                last = if apart { *at } else { last };
                apart
            });
        }
        Scale { low, high, ticks }
    }

    /// Multiples of 1, 2 or 5 times a power of ten.
    fn steps(&self, low: f64, high: f64) -> Vec<f64> {
        let rough = (high - low) / self.max_ticks.saturating_sub(1).max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let step = if self.whole { step.max(1.0) } else { step };
        let first = (low / step).ceil();
        (0..self.max_ticks).map(|i| (first + i as f64) * step).take_while(|v| *v <= high).collect()
    }

    /// Powers of ten, with 2 and 5 between them where there are few.
    fn decades(&self, low: f64, high: f64) -> Vec<f64> {
        let within = |v: &f64| (low..=high).contains(&v.log10());
        let (first, last) = (low.floor() as i32, high.ceil() as i32);
        let of = |factors: &[f64], stride: usize| -> Vec<f64> {
            let powers = (first..=last).filter(|p| p.rem_euclid(stride as i32) == 0).map(|p| 10f64.powi(p));
            powers.flat_map(|p| factors.iter().map(move |f| f * p)).filter(within).collect()
        };
        let stride = ((last - first).max(0) as usize).div_ceil(MAX_TICKS).max(1);
        let lists = [of(&[1.0], stride), of(&[1.0, 3.0], stride), of(&[1.0, 2.0, 5.0], stride)];
        let enough = lists.into_iter().find(|ticks| ticks.len() >= 3);
        enough.unwrap_or_else(|| self.steps(10f64.powf(low), 10f64.powf(high)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, values: &[f64]) -> Vec<String> {
        let scale = axis.scale(values.iter().filter_map(|v| axis.coordinate(*v)));
        assert!(scale.low < scale.high && scale.ticks.len() <= MAX_TICKS + 1, "{scale:?}");
        assert!(scale.ticks.iter().all(|(at, _)| (scale.low..=scale.high).contains(at)), "{scale:?}");
        scale.ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(&Axis::linear(""), &[0.0, 1.0]), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(&Axis::linear("").whole(), &[1.0, 3.0]), ["1", "2", "3"]);
        assert_eq!(labels(&Axis::log(""), &[1.0, 4096.0]), ["1", "10", "100", "1000"]);
        assert_eq!(labels(&Axis::log(""), &[0.011, 0.09]), ["0.01", "0.03", "0.1"]);
    }

    #[test]
    fn any_values_give_an_axis_with_ticks() {
        let (big, nan, inf) = (f64::MAX, f64::NAN, f64::INFINITY);
        let lists: [&[f64]; 12] = [
            &[],
            &[nan, inf, -inf],
            &[0.0],
            &[7.0],
            &[-3.0, nan],
            &[1e-320, 1e-310],
            &[1e149, -1e149],
            &[big, -big, 1.0],
            &[1e16, 1e16 + 2.0],
            &[1.0, 1.0 + 1e-12],
            &[1e-149, 1e149],
            &[5.0, 5.1],
        ];
        for values in lists {
            for axis in [Axis::linear(""), Axis::log(""), Axis::linear("").whole(), Axis::log("").whole()] {
                let whole = axis.whole && (values == [5.0, 5.1] || values == [1.0, 1.0 + 1e-12]);
                assert!(whole || !labels(&axis, values).is_empty(), "{axis:?} of {values:?}");
            }
        }
    }
}
