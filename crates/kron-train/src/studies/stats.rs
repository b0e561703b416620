//! Statistics of a few runs: mean, deviation, bootstrap intervals, paired t-test, and the difference that it finds.

use kron_core::philox;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

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
        let draw = |i: u32| values[index(philox([i, k, 0, 0], [0x626f_6f74, 0])[0], values.len())];
        (0..values.len() as u32).map(draw).sum::<f64>() / values.len() as f64
    };
    percentiles(&mut (0..RESAMPLES).map(resample).collect::<Vec<_>>())
}

/// Maps 32 random bits to an index below `n`.
fn index(bits: u32, n: usize) -> usize {
    ((u64::from(bits) * n as u64) >> 32) as usize
}

/// Sorts resampled means, and returns the ends of their middle 95 %.
fn percentiles(means: &mut [f64]) -> (f64, f64) {
    means.sort_by(f64::total_cmp);
    let at = |quantile: f64| means[(quantile * (means.len() - 1) as f64).round() as usize];
    (at(0.025), at(0.975))
}

/// Mean, and how far another sample might have moved it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Ends of the 95 % interval.
    pub interval: (f64, f64),
    /// Two-sided p-value of a mean of 0; NaN if the sample does not tell.
    pub p: f64,
    /// Smallest true mean that a sample of this size finds (p < 0.05) four times out of five.
    pub detectable: f64,
}

impl Spread {
    /// Computes the spread of the mean of a few values by Student's distribution; NaN of fewer than three, except the
    /// mean.
    pub fn of_values(values: &[f64]) -> Self {
        let (n, mean) = (values.len(), mean(values));
        let error = if n < 3 { f64::NAN } else { deviation(values) / (n as f64).sqrt() };
        let quantile = |q: f64| {
            StudentsT::new(0.0, 1.0, n as f64 - 1.0).map_or(f64::NAN, |student| student.inverse_cdf(q))
        };
        let (half, detectable) = match n < 3 {
            true => (f64::NAN, f64::NAN),
            false => (error * quantile(0.975), error * (quantile(0.975) + quantile(0.8))),
        };
        let interval = (mean - half, mean + half);
        Self { mean, interval, p: paired(values, &vec![0.0; n]), detectable }
    }

    /// Computes the spread of the mean over runs (rows) and examples (columns) by resampling both, independently of
    /// each other (the pigeonhole bootstrap, Owen 2007); `None` without values or with rows of several lengths.
    ///
    /// With n runs, the part of the variance between runs comes out n / (n − 1) times too small.
    pub fn of_runs_and_examples(rows: &[Vec<i8>]) -> Option<Self> {
        let examples =
            rows.first().map(Vec::len).filter(|n| *n > 0 && rows.iter().all(|row| row.len() == *n))?;
        let size = (rows.len() * examples) as f64;
        let sum = |row: &Vec<i8>| row.iter().map(|v| i64::from(*v)).sum::<i64>();
        let mean = rows.iter().map(sum).sum::<i64>() as f64 / size;
        let mut column = vec![0i32; examples];
        let mut resample = |k: u32| {
            let bits = |i: usize, stream| philox([i as u32, k, stream, 0], [0x626f_6f74, 0]);
            column.fill(0);
            for run in (0..rows.len()).map(|i| index(bits(i, 1)[0], rows.len())) {
                column.iter_mut().zip(&rows[run]).for_each(|(sum, v)| *sum += i32::from(*v));
            }
            let draws = (0..examples.div_ceil(4)).flat_map(|i| bits(i, 2)).take(examples);
            draws.map(|bits| i64::from(column[index(bits, examples)])).sum::<i64>() as f64 / size
        };
        let mut means: Vec<f64> = (0..RESAMPLES).map(&mut resample).collect();
        let tail = |beyond: fn(&f64) -> bool| means.iter().filter(|m| beyond(m)).count().saturating_add(1);
        let least = tail(|m| *m <= 0.0).min(tail(|m| *m >= 0.0));
        let p = (2.0 * least as f64 / f64::from(RESAMPLES + 1)).min(1.0);
        let quantile = |q: f64| Normal::standard().inverse_cdf(q);
        let detectable = deviation(&means) * (quantile(0.975) + quantile(0.8));
        Some(Self { mean, interval: percentiles(&mut means), p, detectable })
    }
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

    /// Compares with all resamples of two runs and three examples, which are equally likely.
    #[test]
    fn the_bootstrap_over_runs_and_examples_has_the_exhaustive_distribution() {
        let rows = [vec![1, 0, 1], vec![1, -1, 1]];
        let mut all = Vec::new();
        for code in 0..4 * 27usize {
            let runs = [code % 2, code / 2 % 2];
            let examples = [code / 4 % 3, code / 12 % 3, code / 36 % 3];
            let cells = runs.iter().flat_map(|r| examples.iter().map(|e| f64::from(rows[*r][*e])));
            all.push(cells.sum::<f64>() / 6.0);
        }
        all.sort_by(f64::total_cmp);
        let spread = Spread::of_runs_and_examples(&rows).expect("values");
        assert_eq!(spread.mean, 0.5);
        let share =
            |holds: &dyn Fn(f64) -> bool| all.iter().filter(|m| holds(**m)).count() as f64 / all.len() as f64;
        // A share of 10,000 draws is within 4 standard errors, at most 0.02, of the true one; p is twice a share.
        let p = 2.0 * share(&|m| m <= 0.0);
        assert!(p > 0.2 && (spread.p - p).abs() < 0.04, "{} instead of {p}", spread.p);
        let (low, high) = spread.interval;
        assert!(share(&|m| m <= low) > 0.025 - 0.007 && share(&|m| m < low) < 0.025 + 0.007, "{low}");
        assert!(share(&|m| m >= high) > 0.025 - 0.007 && share(&|m| m > high) < 0.025 + 0.007, "{high}");
        let square = all.iter().map(|m| (m - 0.5).powi(2)).sum::<f64>() / all.len() as f64;
        let want = 2.801_585 * square.sqrt();
        assert!((spread.detectable / want - 1.0).abs() < 0.04, "{} instead of {want}", spread.detectable);
    }

    /// One run of n answers has the variance p (1 − p) / n of a share.
    #[test]
    fn the_bootstrap_of_one_run_has_the_binomial_variance() {
        let row: Vec<i8> = (0..500).map(|i| i8::from(i % 5 != 0)).collect();
        let spread = Spread::of_runs_and_examples(&[row]).expect("values");
        let error = (0.8 * 0.2 / 500f64).sqrt();
        assert!((spread.detectable / (2.801_585 * error) - 1.0).abs() < 0.04, "{spread:?}");
        let half = (spread.interval.1 - spread.interval.0) / 2.0;
        assert!((half / (1.96 * error) - 1.0).abs() < 0.06, "{spread:?}");
        assert!(Spread::of_runs_and_examples(&[vec![1, 0], vec![1]]).is_none());
        assert!(
            Spread::of_runs_and_examples(&[]).is_none() && Spread::of_runs_and_examples(&[vec![]]).is_none()
        );
    }

    #[test]
    fn the_spread_of_a_few_values_is_students() {
        // mean 2, standard deviation 1, error 1/√3; t of two degrees of freedom: 4.3027 and 1.0607.
        let spread = Spread::of_values(&[1.0, 2.0, 3.0]);
        let error = 1.0 / 3f64.sqrt();
        assert!((spread.interval.1 - (2.0 + 4.302_65 * error)).abs() < 1e-3, "{spread:?}");
        assert!((spread.detectable - (4.302_65 + 1.060_66) * error).abs() < 1e-3, "{spread:?}");
        assert!((spread.p - paired(&[2.0, 3.0, 4.0], &[1.0; 3])).abs() < 1e-12 && spread.p > 0.05);
        let few = Spread::of_values(&[1.0, 3.0]);
        assert!(few.mean == 2.0 && few.detectable.is_nan() && few.interval.0.is_nan() && few.p.is_nan());
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
