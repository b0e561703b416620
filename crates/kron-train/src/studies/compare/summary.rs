//! Result of a comparison: each entry at its best learning rate, beside the reference.

use super::grid::{ComparisonGrid, Point};
use super::trial::Trial;
use crate::config::Task;
use crate::studies::stats::{Spread, mean, paired_by};

/// Result of an entry at its best learning rate: one row of the tables.
#[derive(Clone, Debug, PartialEq)]
pub struct EntrySummary {
    /// Name of the entry, with the budget of a point of a curve.
    pub name: String,
    /// Name of the entry.
    pub entry: String,
    /// Largest number of parameters, of a point of a curve.
    pub budget: Option<u64>,
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the head's.
    pub params: usize,
    /// Learning rate with the best mean on the validation set; the higher one of equals.
    pub lr: f64,
    /// `true` if worse learning rates were tried on both sides of it.
    pub bracketed: bool,
    /// `true` if the scores are −losses, `false` for accuracies.
    pub is_loss: bool,
    /// Test scores by seed.
    pub test: Vec<(u64, f64)>,
    /// Mean accuracy on the test set by the choices' log-probabilities instead of their means over tokens.
    pub by_sum: Option<f64>,
    /// Spread of the test score: over seeds and examples if the examples' answers are known, else over seeds.
    pub spread: Spread,
    /// p-value against the reference on the seeds of both; `None` for the reference itself.
    pub p: Option<f64>,
    /// Name of the entry that it is tested against, and the spread of the difference on the same seeds (and examples).
    pub difference: Option<(String, Spread)>,
    /// Mean over the seeds of the median time of a step; `None` after a run that diverged.
    pub step_seconds: Option<f64>,
    /// Mean over the seeds of the mean processor time of a step.
    pub step_cpu_seconds: Option<f64>,
    /// Lowest peak over the seeds: the allocator may still hold memory of an earlier run.
    pub peak_mib: Option<f64>,
    /// Lowest peak of the GPU over the seeds.
    pub device_mib: Option<u64>,
}

/// Runs of a point at its best learning rate, one for each seed.
struct Runs<'t> {
    point: Point,
    lr: f64,
    trials: Vec<&'t Trial>,
}

impl<'t> Runs<'t> {
    fn new(grid: &ComparisonGrid, point: Point, trials: &'t [Trial]) -> Option<Self> {
        let lr = grid.best_lr(&point, trials)?;
        let own = |t: &&Trial| t.name == point.name && t.lr == lr && grid.seeds.contains(&t.seed);
        let trials = trials.iter().filter(own).collect();
        Some(Self { point, lr, trials })
    }

    /// Returns the run of a seed; a point that trains nothing has one run for all seeds.
    fn of(&self, seed: u64) -> Option<&'t Trial> {
        let mut all = self.trials.iter();
        all.find(|t| t.seed == seed || self.point.is_fixed()).copied()
    }

    fn test(&self) -> Vec<(u64, f64)> {
        self.trials.iter().map(|t| (t.seed, t.test)).collect()
    }

    /// Returns the spread of the test score.
    fn spread(&self) -> Spread {
        let answers = |t: &&Trial| Some(digits(t.right.as_deref()?).collect());
        let known: Option<Vec<Vec<i8>>> = self.trials.iter().map(answers).collect();
        let of_examples = known.and_then(|rows| Spread::of_runs_and_examples(&rows));
        of_examples
            .unwrap_or_else(|| Spread::of_values(&self.trials.iter().map(|t| t.test).collect::<Vec<_>>()))
    }

    /// Returns the spread of the difference from other runs, over the seeds of both.
    fn difference(&self, other: &Self, seeds: &[u64]) -> Spread {
        let pairs: Vec<(&Trial, &Trial)> =
            seeds.iter().filter_map(|seed| self.of(*seed).zip(other.of(*seed))).collect();
        let row = |(ours, theirs): &(&Trial, &Trial)| -> Option<Vec<i8>> {
            let (ours, theirs) = (ours.right.as_deref()?, theirs.right.as_deref()?);
            let same_set = ours.len() == theirs.len();
            same_set.then(|| digits(ours).zip(digits(theirs)).map(|(a, b)| a - b).collect())
        };
        let known: Option<Vec<Vec<i8>>> = pairs.iter().map(row).collect();
        let of_examples = known.and_then(|rows| Spread::of_runs_and_examples(&rows));
        let values = || pairs.iter().map(|(a, b)| a.test - b.test).collect::<Vec<_>>();
        of_examples.unwrap_or_else(|| Spread::of_values(&values()))
    }
}

/// Reads the answers of a row: 1 for a correct one, else 0.
fn digits(answers: &str) -> impl Iterator<Item = i8> {
    answers.bytes().map(|digit| i8::from(digit == b'1'))
}

/// Picks each entry's learning rate on the validation set, and tests it against the reference.
///
/// Trials outside the grid are ignored.
pub fn summarise(grid: &ComparisonGrid, trials: &[Trial]) -> Vec<EntrySummary> {
    let points = grid.points();
    let all: Vec<Runs> = points.iter().filter_map(|point| Runs::new(grid, point.clone(), trials)).collect();
    let summary = |runs: &Runs| {
        let reference = grid.reference_of(&runs.point, &points);
        let reference = reference.and_then(|name| all.iter().find(|other| other.point.name == name));
        EntrySummary {
            p: reference.map(|reference| paired_by(&runs.test(), &reference.test())),
            difference: reference
                .map(|reference| (reference.point.name.clone(), runs.difference(reference, &grid.seeds))),
            ..alone(grid, runs, trials)
        }
    };
    all.iter().map(summary).collect()
}

/// Summarises runs without their differences from others.
fn alone(grid: &ComparisonGrid, runs: &Runs, trials: &[Trial]) -> EntrySummary {
    let (point, best) = (&runs.point, &runs.trials);
    let clock: Vec<f64> = best.iter().map(|t| t.step_seconds).collect();
    let cpu: Option<Vec<f64>> = best.iter().map(|t| t.step_cpu_seconds).collect();
    let share = |t: &&Trial| {
        let answers: Vec<f64> = digits(t.right_by_sum.as_deref()?).map(f64::from).collect();
        Some(mean(&answers))
    };
    let by_sum: Option<Vec<f64>> = best.iter().map(share).collect();
    EntrySummary {
        name: point.name.clone(),
        entry: point.entry.clone(),
        budget: point.budget,
        method: best[0].method.clone(),
        params: best[0].params,
        lr: runs.lr,
        bracketed: grid.is_bracketed(point, trials),
        is_loss: matches!(grid.base.task, Task::Lm | Task::Chat),
        test: runs.test(),
        by_sum: by_sum.map(|shares| mean(&shares)),
        spread: runs.spread(),
        p: None,
        difference: None,
        step_seconds: Some(mean(&clock)).filter(|seconds| seconds.is_finite()),
        step_cpu_seconds: cpu.map(|cpu| mean(&cpu)),
        peak_mib: best.iter().filter_map(|t| t.peak_mib).min_by(f64::total_cmp),
        device_mib: best.iter().filter_map(|t| t.device_mib).min(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdapterConfig, Method};
    use crate::studies::Entry;

    /// Makes a grid of a base, a reference and an adapter, and planted rows.
    fn planted() -> (ComparisonGrid, Vec<Trial>) {
        let entry = |name: &str, method| Entry {
            name: name.into(),
            adapter: AdapterConfig { method, ..AdapterConfig::default() },
            ..Entry::default()
        };
        let grid = ComparisonGrid {
            lrs: vec![1e-3],
            seeds: vec![1, 2],
            entries: vec![
                entry("lora", Method::Lora),
                entry("kron", Method::Kron),
                entry("base", Method::None),
            ],
            reference: "lora".into(),
            ..ComparisonGrid::default()
        };
        let row = |name: &str, seed: u64, right: &str, by_sum: &str| Trial {
            validation: 0.5,
            test: digits(right).map(f64::from).sum::<f64>() / right.len() as f64,
            right: Some(right.into()),
            right_by_sum: Some(by_sum.into()),
            ..Trial::new(name, 1e-3, seed, None, 0.0)
        };
        let rows = vec![
            row("lora", 1, "110000", "100000"),
            row("lora", 2, "111000", "110000"),
            row("kron", 1, "111100", "111100"),
            row("kron", 2, "111110", "111111"),
            row("base", 1, "100000", "111000"),
        ];
        (grid, rows)
    }

    #[test]
    fn differences_pair_the_answers_of_each_seed_and_a_base_stands_for_all_seeds() {
        let (grid, rows) = planted();
        let all = summarise(&grid, &rows);
        let [lora, kron, base] = all.as_slice() else { panic!("{all:?}") };
        let close = |a: Option<f64>, b: f64| a.is_some_and(|a| (a - b).abs() < 1e-12);
        assert!(lora.difference.is_none() && close(lora.by_sum, 0.25), "{lora:?}");
        let difference = |summary: &EntrySummary| {
            let (name, spread) = summary.difference.clone().expect("a difference");
            assert_eq!(name, "lora");
            spread
        };
        assert!((difference(kron).mean - 4.0 / 12.0).abs() < 1e-12, "{kron:?}");
        assert!((difference(base).mean + 3.0 / 12.0).abs() < 1e-12, "{base:?}");
        let direct = Spread::of_runs_and_examples(&[vec![0, 0, 1, 1, 0, 0], vec![0, 0, 0, 1, 1, 0]]);
        assert_eq!(Some(difference(kron)), direct);
        assert!(close(Some(kron.spread.mean), 9.0 / 12.0) && close(kron.by_sum, 10.0 / 12.0), "{kron:?}");
    }

    #[test]
    fn without_answers_differences_are_those_of_the_seeds() {
        let (mut grid, mut rows) = planted();
        grid.base.task = Task::Lm;
        rows.iter_mut().for_each(|row| (row.right, row.right_by_sum) = (None, None));
        let kron = &summarise(&grid, &rows)[1];
        let (_, spread) = kron.difference.clone().expect("a difference");
        assert!(
            (spread.mean - 4.0 / 12.0).abs() < 1e-12 && spread.p.is_nan(),
            "two seeds tell nothing: {spread:?}"
        );
        assert!(kron.is_loss && kron.by_sum.is_none());
    }
}
