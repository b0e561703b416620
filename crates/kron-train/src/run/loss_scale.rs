//! Scaling of the loss in float16, so that small gradients do not vanish (arXiv 1710.03740, section 3.2).

use crate::compute::Precision;

/// Initial factor.
const FIRST: f64 = 65_536.0;
/// Steps without an overflow after which the factor doubles.
const PATIENCE: u64 = 2000;

/// Factor of the loss: a power of two, which rounds no gradient that float16 can represent scaled and unscaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    factor: f64,
    /// Steps since the factor changed; `None` if it never does.
    steps: Option<u64>,
}

impl LossScale {
    /// Starts with a fixed factor of 1, except in float16: the other types have the exponent range of float32.
    pub fn new(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::Bf16 => Self { factor: 1.0, steps: None },
            Precision::F16 => Self { factor: FIRST, steps: Some(0) },
        }
    }

    /// Returns the factor of the loss.
    pub const fn factor(self) -> f64 {
        self.factor
    }

    /// Halves the factor after a gradient that was not finite; returns `false` if it cannot get smaller.
    pub fn shrink(&mut self) -> bool {
        if self.steps.is_none() || self.factor <= 1.0 {
            return false;
        }
        *self = Self { factor: self.factor / 2.0, steps: Some(0) };
        true
    }

    /// Counts a step without overflow.
    pub fn passed(&mut self) {
        let Some(steps) = &mut self.steps else { return };
        *steps += 1;
        if *steps == PATIENCE {
            *self = Self { factor: self.factor * 2.0, steps: Some(0) };
        }
    }

    /// Renders the state for a checkpoint; `None` if the factor never changes.
    pub fn text(self) -> Option<String> {
        self.steps.map(|steps| format!("{} {steps}", self.factor))
    }

    /// Parses the text that [`LossScale::text`] renders.
    pub fn parse(text: &str) -> Option<Self> {
        let (factor, steps) = text.split_once(' ')?;
        let (factor, steps) = (factor.parse().ok()?, steps.parse().ok()?);
        (f64::is_finite(factor) && factor >= 1.0).then_some(Self { factor, steps: Some(steps) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_float16_is_scaled() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut scale = LossScale::new(precision);
            (0..2 * PATIENCE).for_each(|_| scale.passed());
            assert_eq!((scale.factor(), scale.shrink(), scale.text()), (1.0, false, None));
        }
    }

    #[test]
    fn it_shrinks_at_once_and_grows_slowly() {
        let mut scale = LossScale::new(Precision::F16);
        (1..PATIENCE).for_each(|_| scale.passed());
        assert!(scale.shrink() && scale.factor() == FIRST / 2.0);
        (1..PATIENCE).for_each(|_| scale.passed());
        assert_eq!(scale.factor(), FIRST / 2.0, "patience begins anew");
        assert_eq!(scale.text().as_deref().and_then(LossScale::parse), Some(scale));
        scale.passed();
        assert_eq!(scale.factor(), FIRST);
        assert_eq!((0..40).filter(|_| scale.shrink()).count(), 16, "to 1 and no further");
    }

    #[test]
    fn what_no_scale_says_is_refused() {
        for text in ["", "8", "0.5 3", "inf 3", "NaN 3", "8 -1"] {
            assert_eq!(LossScale::parse(text), None, "{text:?}");
        }
    }
}
