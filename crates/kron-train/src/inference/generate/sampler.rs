//! [`Sampler`]: the choice of the next token.

use kron_core::philox;

use super::GenerateOptions;

/// Chooser of one text's tokens; the same seed, text and place give the same draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler {
    temperature: f64,
    top_p: f64,
    seed: u64,
    text: u32,
}

impl Sampler {
    /// Makes the sampler of a text by its number.
    pub const fn new(options: &GenerateOptions, text: u32) -> Self {
        Self { temperature: options.temperature, top_p: options.top_p, seed: options.seed, text }
    }

    /// Chooses the token at a place by its logits; `None` if one of them is NaN or infinite.
    pub fn choose(&self, logits: &[f32], place: u32) -> Option<u32> {
        if logits.is_empty() || !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let kept = self.nucleus(logits);
        let mut left = self.uniform(place) * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        let drawn = kept.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a little of the sum.
        drawn.or(kept.last()).map(|(id, _)| *id)
    }

    /// Returns the most probable tokens with weights relative to the first one: the smallest number of them that has
    /// the probability top_p, at least one.
    fn nucleus(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        if self.temperature == 0.0 || self.top_p == 0.0 {
            let first = logits.iter().position(|&logit| logit == highest).unwrap_or(0);
            return vec![(first as u32, 1.0)];
        }
        let weight = |logit: f32| ((f64::from(logit) - f64::from(highest)) / self.temperature).exp();
        let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&logit| weight(logit))).collect();
        if self.top_p < 1.0 {
            // The sort is stable: of equal tokens the first ones stay.
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            let enough = self.top_p * all.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let before = all.iter().take_while(|(_, weight)| {
                sum += weight;
                sum < enough
            });
            let kept = before.count() + 1;
            all.truncate(kept);
        }
        all
    }

    /// Returns a number from 0 to below 1, in steps of 2⁻⁵³.
    fn uniform(&self, place: u32) -> f64 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let [high, low, ..] = philox([place, self.text, 0x746f_6b65, 0], key);
        let bits = u64::from(high) << 32 | u64::from(low);
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_p: f64, seed: u64) -> Sampler {
        Sampler { temperature, top_p, seed, text: 3 }
    }

    /// Logits whose probabilities at temperature 1 are 0.4, 0.1, 0.2, 0.25, 0.05.
    fn logits() -> Vec<f32> {
        [0.4f32, 0.1, 0.2, 0.25, 0.05].map(|p| p.ln() + 3.0).to_vec()
    }

    /// Draws often, and compares each token's frequency with its probability to within five standard deviations.
    #[test]
    fn draws_have_the_distribution_of_top_p_and_temperature() {
        let squared: Vec<f64> = [0.4, 0.1, 0.2, 0.25, 0.05].map(|p| p * p / 0.275).to_vec();
        for (temperature, top_p, want) in [
            (1.0, 1.0, vec![0.4, 0.1, 0.2, 0.25, 0.05]),
            (1.0, 0.85, vec![0.4 / 0.85, 0.0, 0.2 / 0.85, 0.25 / 0.85, 0.0]),
            (1.0, 0.8, vec![0.4 / 0.85, 0.0, 0.2 / 0.85, 0.25 / 0.85, 0.0]),
            (1.0, 0.5, vec![0.4 / 0.65, 0.0, 0.0, 0.25 / 0.65, 0.0]),
            (1.0, 0.39, vec![1.0, 0.0, 0.0, 0.0, 0.0]),
            (0.5, 1.0, squared),
        ] {
            // Float32's logarithms put 0.85 on one side of the sum by chance.
            let top_p = if top_p == 0.85 { 0.849 } else { top_p };
            let (sampler, logits, n) = (sampler(temperature, top_p, 11), logits(), 20_000);
            let mut counts = [0u32; 5];
            (0..n).for_each(|place| counts[sampler.choose(&logits, place).expect("finite") as usize] += 1);
            for (count, p) in counts.into_iter().zip(&want) {
                let spread = 5.0 * (f64::from(n) * p * (1.0 - p)).sqrt();
                let off = (f64::from(count) - f64::from(n) * p).abs();
                assert!(off <= spread, "{temperature} {top_p}: {counts:?}, not {want:?}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        for sampler in [sampler(0.0, 1.0, 1), sampler(1.0, 0.0, 1), sampler(1e-300, 1.0, 1)] {
            assert_eq!(sampler.choose(&[0.5, 2.0, -1.0, 1.9], 7), Some(1));
        }
        assert_eq!(sampler(0.0, 1.0, 1).choose(&[2.0, 2.0], 7), Some(0));
    }

    #[test]
    fn a_draw_depends_on_seed_text_and_place() {
        let draws = |sampler: Sampler| -> Vec<Option<u32>> {
            (0..64).map(|place| sampler.choose(&logits(), place)).collect()
        };
        let first = draws(sampler(1.0, 1.0, 5));
        assert_eq!(first, draws(sampler(1.0, 1.0, 5)));
        assert_ne!(first, draws(sampler(1.0, 1.0, 6)));
        assert_ne!(first, draws(sampler(1.0, 1.0, 5 + (1 << 32))));
        assert_ne!(first, draws(Sampler { text: 4, ..sampler(1.0, 1.0, 5) }));
    }

    #[test]
    fn scores_that_are_not_finite_choose_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(sampler(1.0, 1.0, 1).choose(&[0.0, bad], 0), None);
        }
        assert_eq!(sampler(1.0, 1.0, 1).choose(&[], 0), None);
        let edges = [f32::MAX, f32::MIN];
        assert_eq!(sampler(100.0, 1.0, 1).choose(&edges, 0), Some(0));
    }
}
