//! Sums of factors that are made sparse before: PEFT's `merge_utils`.

/// Rule by which the sign of the majority is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Majority {
    /// The sign of the sum.
    Total,
    /// The sign of most values.
    Frequency,
}

/// A factor, of which some values are zero.
pub struct Sparse(Vec<f64>);

impl Sparse {
    /// Takes all values.
    pub fn whole(values: &[f32]) -> Self {
        Self(values.iter().map(|v| f64::from(*v)).collect())
    }

    /// Keeps ⌊density·n⌋ of the n values, the largest by magnitude; of equal ones the first.
    pub fn largest(values: &[f32], density: f64) -> Self {
        if density >= 1.0 {
            return Self::whole(values);
        }
        let kept = (density * values.len() as f64) as usize;
        let mut order: Vec<usize> = (0..values.len()).collect();
        let before = |i: &usize, j: &usize| values[*j].abs().total_cmp(&values[*i].abs()).then(i.cmp(j));
        if kept < order.len() {
            order.select_nth_unstable_by(kept, before);
        }
        let mut sparse = vec![0.0; values.len()];
        order[..kept].iter().for_each(|i| sparse[*i] = f64::from(values[*i]));
        Self(sparse)
    }

    /// Keeps every value with this probability, divided by it.
    pub fn random(values: &[f32], density: f64, random: &mut Random) -> Self {
        if density >= 1.0 {
            return Self::whole(values);
        }
        let keep = |v: &f32| if random.next() < density { f64::from(*v) / density } else { 0.0 };
        Self(values.iter().map(keep).collect())
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number in [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 * 2f64.powi(-53)
    }
}

/// Returns Σ weight·factor.
pub fn weighted_sum(factors: &[Sparse], weights: &[f64]) -> Vec<f32> {
    let sum =
        |i: usize| factors.iter().zip(weights).map(|(factor, weight)| factor.0[i] * weight).sum::<f64>();
    (0..len(factors)).map(|i| sum(i) as f32).collect()
}

/// Returns, for each element, the mean of weight·value over the values that have the sign of the majority. A
/// majority of zero counts as positive, and zeros have no sign.
pub fn majority_mean(factors: &[Sparse], weights: &[f64], majority: Majority) -> Vec<f32> {
    let sign = |v: f64| if v == 0.0 { 0.0 } else { v.signum() };
    let mean = |i: usize| {
        let total: f64 = match majority {
            Majority::Total => factors.iter().map(|factor| factor.0[i]).sum(),
            Majority::Frequency => factors.iter().map(|factor| sign(factor.0[i])).sum(),
        };
        let elected = if total >= 0.0 { 1.0 } else { -1.0 };
        let (mut sum, mut count) = (0.0, 0.0f64);
        for (factor, weight) in factors.iter().zip(weights).filter(|(factor, _)| sign(factor.0[i]) == elected)
        {
            sum += factor.0[i] * weight;
            count += 1.0;
        }
        sum / count.max(1.0)
    };
    (0..len(factors)).map(|i| mean(i) as f32).collect()
}

fn len(factors: &[Sparse]) -> usize {
    factors.first().map_or(0, |factor| factor.0.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_values_stay() {
        let values = [0.5, -3.0, 2.0, -2.0, 0.0, 1.0];
        let kept = |density: f64| Sparse::largest(&values, density).0;
        assert_eq!(kept(0.5), [0.0, -3.0, 2.0, -2.0, 0.0, 0.0]);
        assert_eq!(kept(0.4), [0.0, -3.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(0.1), [0.0; 6]);
        assert_eq!(kept(1.0), values.map(f64::from));
    }

    #[test]
    fn random_values_stay_and_keep_the_sum() {
        let values = vec![1.0f32; 40_000];
        let of = |seed: u64| Sparse::random(&values, 0.3, &mut Random::new(seed)).0;
        let (a, b) = (of(1), of(2));
        assert!(a == of(1) && a != b, "a seed chooses");
        assert!(a.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.3));
        let kept = a.iter().filter(|v| **v != 0.0).count() as f64;
        // Six standard deviations of a binomial of 40,000 and 0.3.
        assert!((kept - 12_000.0).abs() < 6.0 * (40_000.0f64 * 0.21).sqrt(), "{kept}");
    }

    #[test]
    fn the_majority_s_values_are_averaged() {
        let factors = [[1.0f32, -1.0, 2.0, 0.0], [3.0, 2.0, -2.0, 0.0], [-9.0, 0.5, 0.0, -1.0]];
        let factors = factors.map(|factor| Sparse::whole(&factor));
        let weights = [1.0, 0.5, 2.0];
        // Sums −5, 1.5, 0, −1.
        assert_eq!(majority_mean(&factors, &weights, Majority::Total), [-18.0, 1.0, 2.0, -2.0]);
        assert_eq!(majority_mean(&factors, &weights, Majority::Frequency), [1.25, 1.0, 2.0, -2.0]);
    }
}
