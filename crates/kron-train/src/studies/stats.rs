//! Statistics of a few runs: mean, deviation, bootstrap interval, paired t-test.

use kron_core::philox;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Number of resamples of a bootstrap.
const RESAMPLES: u32 = 10_000;

/// Returns the mean; NaN of no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns the sample's standard deviation, with n − 1; NaN of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let mean = mean(values);
    let square: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (square / (values.len() - 1) as f64).sqrt()
}

/// Returns the 95 % percentile interval of the mean by bootstrap (Efron 1979); equal values give equal intervals.
pub fn interval(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let resample = |k: u32| {
        let draw = |i: u32| {
            let bits = philox([i, k, 0, 0], [0x626f_6f74, 0])[0];
            values[((u64::from(bits) * values.len() as u64) >> 32) as usize]
        };
        (0..values.len() as u32).map(draw).sum::<f64>() / values.len() as f64
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(resample).collect();
    means.sort_by(f64::total_cmp);
    let at = |quantile: f64| means[(quantile * (RESAMPLES - 1) as f64).round() as usize];
    (at(0.025), at(0.975))
}

/// Returns the two-sided p-value of a paired t-test; 1 if all pairs are equal.
///
/// The result is NaN for fewer than three pairs, and if all differences agree up to rounding: their deviation is
/// then rounding noise.
pub fn paired(a: &[f64], b: &[f64]) -> f64 {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let (n, mean, deviation) = (differences.len() as f64, mean(&differences), deviation(&differences));
    if differences.len() < 3 {
        return f64::NAN;
    }
    if differences.iter().all(|d| *d == 0.0) {
        return 1.0;
    }
    let largest = a.iter().chain(b).fold(0.0f64, |largest, v| largest.max(v.abs()));
    if deviation <= 8.0 * f64::EPSILON * largest {
        return f64::NAN;
    }
    let t = mean / (deviation / n.sqrt());
    two_sided(t, n - 1.0)
}

/// Computes [`paired`] over the values whose keys occur on both sides.
pub fn paired_by<K: PartialEq>(a: &[(K, f64)], b: &[(K, f64)]) -> f64 {
    let pairs = a.iter().filter_map(|(key, value)| {
        let (_, other) = b.iter().find(|(other, _)| other == key)?;
        Some((*value, *other))
    });
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.unzip();
    paired(&a, &b)
}

/// Returns P(|T| ≥ |t|) of Student's distribution; NaN without degrees of freedom.
fn two_sided(t: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |student| 2.0 * student.cdf(-t.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_students_distribution() {
        for (t, freedom, p) in
            [(12.706, 1.0, 0.05), (4.303, 2.0, 0.05), (2.776, 4.0, 0.05), (1.372, 10.0, 0.2)]
        {
            assert!(
                (two_sided(t, freedom) - p).abs() < 2e-4,
                "{t} with {freedom}: {}",
                two_sided(t, freedom)
            );
        }
        assert!((two_sided(0.0, 3.0) - 1.0).abs() < 1e-9);
        assert!(two_sided(1.0, 0.0).is_nan());
    }

    #[test]
    fn a_difference_is_seen_and_equality_is_not() {
        let (a, b) = ([0.80, 0.82, 0.84, 0.81], [0.76, 0.79, 0.80, 0.78]);
        assert!(paired(&a, &b) < 0.01);
        assert_eq!(paired(&a, &a), 1.0);
        assert!(paired(&a[..2], &b[..2]).is_nan() && paired(&a[..3], &b[..3]) < 0.05);
        let shifted = a.map(|v| v - 0.3);
        assert!(paired(&a, &shifted).is_nan(), "{}", paired(&a, &shifted));
        let (low, high) = interval(&a);
        assert!(low >= 0.80 && low < mean(&a) && mean(&a) < high && high <= 0.84, "{low} … {high}");
        assert!((deviation(&a) - 0.017_078).abs() < 1e-5);
    }
}
