//! What a loss is multiplied by before its gradients are taken in float16, so that small
//! ones do not vanish (arXiv 1710.03740, section 3.2).

use crate::compute::Precision;

/// At first, and after so many steps without an overflow twice as much.
const FIRST: f64 = 65_536.0;
const PATIENCE: u64 = 2000;

/// A power of two, so that it changes no gradient that float16 holds either way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    factor: f64,
    /// Steps since it changed; `None` where it never does.
    steps: Option<u64>,
}

impl LossScale {
    /// 1 for all numbers but float16's: they reach as far down as the loss's own.
    pub fn new(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::Bf16 => Self { factor: 1.0, steps: None },
            Precision::F16 => Self { factor: FIRST, steps: Some(0) },
        }
    }

    /// What the loss is multiplied by.
    pub const fn factor(self) -> f64 {
        self.factor
    }

    /// After a gradient that was not finite: whether a smaller factor is worth another try.
    pub fn shrink(&mut self) -> bool {
        if self.steps.is_none() || self.factor <= 1.0 {
            return false;
        }
        *self = Self { factor: self.factor / 2.0, steps: Some(0) };
        true
    }

    /// After a step that was taken.
    pub fn passed(&mut self) {
        let Some(steps) = &mut self.steps else { return };
        *steps += 1;
        if *steps == PATIENCE {
            *self = Self { factor: self.factor * 2.0, steps: Some(0) };
        }
    }

    /// As a checkpoint keeps it; `None` where there is nothing to keep.
    pub fn text(self) -> Option<String> {
        self.steps.map(|steps| format!("{} {steps}", self.factor))
    }

    /// What [`LossScale::text`] said.
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
