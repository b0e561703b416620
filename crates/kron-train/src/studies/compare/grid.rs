//! Grid of a comparison: its points, their learning rates, and the runs that are left.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::trial::Trial;
use crate::config::{AdapterConfig, Config, Method};
use crate::error::{Result, file, invalid};
use crate::files;
use crate::studies::grid_file::{Entry, check_entries, check_runs};
use crate::studies::stats::mean;

/// Largest number of learning rates that are added to a point's own.
const MAX_WIDEN: usize = 100;

/// Grid of a comparison, as its TOML file holds it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonGrid {
    /// Settings shared by all runs, except adapter, learning rate and seed.
    pub base: Config,
    /// Learning rates.
    #[serde(alias = "rates")]
    pub lrs: Vec<f64>,
    /// Largest number of learning rates that are added to an entry's own while the best is the lowest or the highest.
    #[serde(default)]
    pub widen: usize,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Number of leading seeds that try every learning rate; the others run an entry's best one alone.
    ///
    /// 0 tries every learning rate with every seed.
    #[serde(default)]
    pub screen: usize,
    /// Budgets of parameters: each entry with a rank or a shape runs once for each, as large as the budget allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<u64>,
    /// Methods to compare.
    pub entries: Vec<Entry>,
    /// Name of the entry that the others are tested against.
    pub reference: String,
}

/// Adapter of a comparison: an entry, or an entry at one budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Name in the rows and tables.
    pub name: String,
    /// Name of the entry.
    pub entry: String,
    /// Largest number of parameters, of a point of a curve.
    pub budget: Option<u64>,
    /// Method and shape.
    pub adapter: AdapterConfig,
    /// Learning rates to begin with.
    lrs: Vec<f64>,
}

impl Point {
    /// Returns `true` if every run has the same result: nothing is trained.
    pub fn is_fixed(&self) -> bool {
        self.adapter.method == Method::None
    }
}

impl ComparisonGrid {
    /// Renders the grid as TOML, including the defaults.
    ///
    /// # Errors
    /// A path is not Unicode.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| invalid(format!("the grid cannot be written: {e}")))
    }

    /// Reads a grid.
    ///
    /// # Errors
    /// The file is not a grid, an entry has no seed or learning rate, or the reference is not an entry.
    pub fn read(path: &Path) -> Result<Self> {
        let grid: Self = files::toml(path)?;
        if grid.seeds.is_empty() || grid.points().iter().any(|point| point.lrs.is_empty()) {
            return Err(file(
                path,
                "has no seed or no learning rate, but every entry runs with at least one",
            ));
        }
        grid.check().map_err(|e| file(path, e))?;
        Ok(grid)
    }

    /// Fails if a run's settings are out of range, or the entries do not make a comparison.
    fn check(&self) -> Result<()> {
        check_entries(&self.entries, &self.reference)?;
        let points = self.points();
        let lrs = points.iter().map(|point| point.lrs.len()).max().unwrap_or(0);
        if self.widen > MAX_WIDEN {
            let widen = self.widen;
            return Err(invalid(format!("widen is {widen}, but it is an integer from 0 to {MAX_WIDEN}")));
        }
        check_runs([self.seeds.len(), lrs + self.widen, points.len()])?;
        if self.screen > self.seeds.len() {
            let (screen, seeds) = (self.screen, self.seeds.len());
            return Err(invalid(format!(
                "screen is {screen}, but it is an integer from 0 to the {seeds} seeds"
            )));
        }
        for point in &points {
            if self.widen > 0 && !point.is_fixed() && ends(&point.lrs).is_none() {
                return Err(invalid(format!(
                    "widen is {}, but {:?} has no two learning rates above 0, whose ratio gives the next",
                    self.widen, point.name
                )));
            }
            for (lr, seed) in point.lrs.iter().flat_map(|lr| self.seeds.iter().map(move |seed| (lr, seed))) {
                self.config(point, *lr, *seed).check()?;
            }
        }
        Ok(())
    }

    /// Returns the adapters to compare: each entry, or one for each of its budgets.
    pub fn points(&self) -> Vec<Point> {
        let of = |entry: &Entry| {
            let lrs = if entry.lrs.is_empty() { &self.lrs } else { &entry.lrs };
            let sized = !matches!(entry.adapter.method, Method::None | Method::Head | Method::Full);
            let budgets = match (sized, entry.budgets.is_empty()) {
                (false, _) => &[],
                (true, true) => self.budgets.as_slice(),
                (true, false) => &entry.budgets,
            };
            let whole = Point {
                name: entry.name.clone(),
                entry: entry.name.clone(),
                budget: None,
                adapter: entry.adapter.clone(),
                lrs: lrs.clone(),
            };
            if whole.is_fixed() {
                return vec![Point { lrs: lrs.iter().take(1).copied().collect(), ..whole }];
            }
            let at = |budget: &u64| Point {
                name: format!("{} ≤ {budget}", entry.name),
                budget: Some(*budget),
                adapter: AdapterConfig { match_params: *budget, ..entry.adapter.clone() },
                ..whole.clone()
            };
            if budgets.is_empty() { vec![whole] } else { budgets.iter().map(at).collect() }
        };
        self.entries.iter().flat_map(of).collect()
    }

    /// Returns the name of the point that another is tested against: the reference, at the same budget if it has any.
    pub(super) fn reference_of(&self, point: &Point, points: &[Point]) -> Option<String> {
        let mut all = points.iter().filter(|other| other.entry == self.reference);
        let found = all.find(|other| other.budget.is_none() || other.budget == point.budget)?;
        (found.name != point.name).then(|| found.name.clone())
    }

    /// Returns the settings of a run.
    pub(super) fn config(&self, point: &Point, lr: f64, seed: u64) -> Config {
        let mut config = self.base.clone();
        config.adapter = point.adapter.clone();
        (config.train.lr, config.train.seed) = (lr, seed);
        config
    }

    /// Returns a point's learning rates: its own, and those that were added because the best of the first stage's
    /// trials was the lowest or the highest.
    pub(super) fn lrs(&self, point: &Point, trials: &[Trial]) -> Vec<f64> {
        let mut lrs = point.lrs.clone();
        for _ in 0..self.widen {
            let Some(next) = self.beyond(point, &lrs, trials) else { break };
            lrs.push(next);
        }
        lrs
    }

    /// Returns the learning rate to add, once all others are tried and the best of them is at an end.
    fn beyond(&self, point: &Point, lrs: &[f64], trials: &[Trial]) -> Option<f64> {
        let seeds = self.stages().0;
        let tried = |lr: f64| seeds.iter().all(|seed| self.is_done(point, lr, *seed, trials));
        if point.is_fixed() || !lrs.iter().all(|lr| tried(*lr)) {
            return None;
        }
        let (best, [low, next_low, next_high, high]) = (self.best_of(point, lrs, trials)?, ends(lrs)?);
        let next = match best {
            best if best == high => high * (high / next_high),
            best if best == low => low * (low / next_low),
            _ => return None,
        };
        // Three digits, so that a table can show it.
        format!("{next:.2e}").parse().ok()
    }

    /// Returns the seeds that try every learning rate, and those that run the best one alone.
    fn stages(&self) -> (&[u64], &[u64]) {
        let all = if self.screen == 0 { self.seeds.len() } else { self.screen.min(self.seeds.len()) };
        self.seeds.split_at(all)
    }

    fn is_done(&self, point: &Point, lr: f64, seed: u64, trials: &[Trial]) -> bool {
        let other_seed = point.is_fixed() && self.seeds.first() != Some(&seed);
        other_seed || trials.iter().any(|t| t.name == point.name && t.lr == lr && t.seed == seed)
    }

    /// Returns the learning rate with the best mean on the validation set over the first stage's trials; the higher
    /// one of equals.
    pub(super) fn best_lr(&self, point: &Point, trials: &[Trial]) -> Option<f64> {
        self.best_of(point, &self.lrs(point, trials), trials)
    }

    fn best_of(&self, point: &Point, lrs: &[f64], trials: &[Trial]) -> Option<f64> {
        let seeds = self.stages().0;
        let score = |lr: f64| {
            let tried = trials.iter().filter(|t| t.name == point.name && t.lr == lr);
            mean(&tried.filter(|t| seeds.contains(&t.seed)).map(|t| t.validation).collect::<Vec<_>>())
        };
        let scores = lrs.iter().map(|lr| (*lr, score(*lr)));
        let best = scores
            .filter(|(_, score)| !score.is_nan())
            .max_by(|a, b| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0)));
        best.map(|(lr, _)| lr)
    }

    /// Returns `true` if a point's best learning rate has a worse one on both sides.
    pub(super) fn is_bracketed(&self, point: &Point, trials: &[Trial]) -> bool {
        let lrs = self.lrs(point, trials);
        let best = self.best_of(point, &lrs, trials);
        point.is_fixed()
            || best.is_some_and(|best| lrs.iter().any(|lr| *lr < best) && lrs.iter().any(|lr| *lr > best))
    }

    /// Returns `k of n runs done`, or `None` if all are.
    pub fn unfinished(&self, trials: &[Trial]) -> Option<String> {
        let (every, best) = self.stages();
        let (mut k, mut n) = (0, 0);
        let mut count = |point: &Point, lr: Option<f64>, seeds: &[u64]| {
            for seed in seeds.iter().filter(|seed| !point.is_fixed() || self.seeds.first() == Some(seed)) {
                n += 1;
                k += usize::from(lr.is_some_and(|lr| self.is_done(point, lr, *seed, trials)));
            }
        };
        for point in &self.points() {
            self.lrs(point, trials).into_iter().for_each(|lr| count(point, Some(lr), every));
            count(point, self.best_lr(point, trials), best);
        }
        (k < n).then(|| format!("{k} of {n} runs done"))
    }

    /// Returns the first missing run, seed by seed, so that a comparison cut short is balanced; `None` if all others
    /// wait for the results of some in progress.
    pub(super) fn next(
        &self,
        points: &[Point],
        trials: &[Trial],
        running: &[(Point, f64, u64)],
    ) -> Option<(Point, f64, u64)> {
        let (every, best) = self.stages();
        let with = |seed: u64, lrs: &dyn Fn(&Point) -> Vec<f64>| {
            points.iter().find_map(|point| {
                let is_running =
                    |lr: f64| running.iter().any(|(p, l, s)| p == point && *l == lr && *s == seed);
                let is_free = |lr: &f64| !self.is_done(point, *lr, seed, trials) && !is_running(*lr);
                Some((point.clone(), lrs(point).into_iter().find(is_free)?, seed))
            })
        };
        let all = |point: &Point| self.lrs(point, trials);
        // The best rate is known when all are tried.
        let tries = |point: &Point| running.iter().any(|(p, _, seed)| p == point && every.contains(seed));
        let one = |point: &Point| match tries(point) {
            true => Vec::new(),
            false => self.best_lr(point, trials).into_iter().collect(),
        };
        every
            .iter()
            .find_map(|seed| with(*seed, &all))
            .or_else(|| best.iter().find_map(|seed| with(*seed, &one)))
    }
}

/// Returns the lowest two and the highest two of the learning rates; `None` if they are not two above 0.
fn ends(lrs: &[f64]) -> Option<[f64; 4]> {
    let mut sorted = lrs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    match sorted.as_slice() {
        [low, next, .., before, high] if *low > 0.0 => Some([*low, *next, *before, *high]),
        [low, mid, high] if *low > 0.0 => Some([*low, *mid, *mid, *high]),
        [low, high] if *low > 0.0 => Some([*low, *high, *low, *high]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(lrs: &[f64], widen: usize, seeds: &[u64]) -> ComparisonGrid {
        let entry = |name: &str, method| Entry {
            name: name.into(),
            adapter: AdapterConfig { method, ..AdapterConfig::default() },
            ..Entry::default()
        };
        ComparisonGrid {
            lrs: lrs.to_vec(),
            widen,
            seeds: seeds.to_vec(),
            screen: 1,
            entries: vec![entry("a", Method::Lora)],
            reference: "a".into(),
            ..ComparisonGrid::default()
        }
    }

    /// Runs a grid to its end, with a score for each learning rate; returns the learning rates in their order.
    fn play(grid: &ComparisonGrid, score: impl Fn(f64) -> f64) -> Vec<(f64, u64)> {
        let (points, mut trials) = (grid.points(), Vec::new());
        while let Some((point, lr, seed)) = grid.next(&points, &trials, &[]) {
            let trial = Trial { validation: score(lr), seed, ..Trial::new(&point.name, lr, seed, None, 0.0) };
            trials.push(trial);
            assert!(trials.len() < 100, "{trials:?}");
        }
        assert_eq!(grid.unfinished(&trials), None);
        trials.iter().map(|t| (t.lr, t.seed)).collect()
    }

    #[test]
    fn learning_rates_are_added_until_the_best_has_a_worse_one_on_both_sides() {
        let peak = |at: f64| move |lr: f64| -(lr / at).log2().abs();
        let lrs = |run: Vec<(f64, u64)>| run.into_iter().map(|(lr, _)| lr).collect::<Vec<_>>();
        // The best is the middle one; the other seed runs it alone.
        let wide = grid(&[1e-3, 2e-3, 4e-3], 8, &[1, 2]);
        assert_eq!(play(&wide, peak(2e-3)), [(1e-3, 1), (2e-3, 1), (4e-3, 1), (2e-3, 2)]);
        // The best is above, then below, all of them.
        assert_eq!(lrs(play(&wide, peak(1.6e-2))), [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 1.6e-2]);
        assert_eq!(lrs(play(&wide, peak(2.5e-4))), [1e-3, 2e-3, 4e-3, 5e-4, 2.5e-4, 1.25e-4, 2.5e-4]);
        // Equal scores: the highest is the best, so there is one more above.
        assert_eq!(lrs(play(&grid(&[1e-3, 2e-3], 1, &[1]), |_| 0.5)), [1e-3, 2e-3, 4e-3]);
        // The limit ends it, and the entry is known as open.
        let narrow = grid(&[1e-3, 2e-3, 4e-3], 1, &[1]);
        let ran = play(&narrow, peak(1.0));
        assert_eq!(lrs(ran.clone()), [1e-3, 2e-3, 4e-3, 8e-3]);
        let bracketed = |grid: &ComparisonGrid, ran: &[(f64, u64)], at: f64| {
            let trial = |(lr, seed): &(f64, u64)| Trial {
                validation: peak(at)(*lr),
                ..Trial::new("a", *lr, *seed, None, 0.0)
            };
            grid.is_bracketed(&grid.points()[0], &ran.iter().map(trial).collect::<Vec<_>>())
        };
        assert!(!bracketed(&narrow, &ran, 1.0));
        assert!(bracketed(&wide, &play(&wide, peak(1.6e-2)), 1.6e-2));
        // Without widening nothing is added.
        assert_eq!(play(&grid(&[1e-3, 2e-3], 0, &[1]), peak(1.0)).len(), 2);
    }

    #[test]
    fn budgets_make_points_and_each_is_tested_against_the_reference_at_its_own() {
        let mut grid = grid(&[1e-3], 0, &[1, 2, 3]);
        grid.budgets = vec![5000, 9000];
        let other = Entry { name: "b".into(), budgets: vec![2000, 9000], ..Entry::default() };
        let none = AdapterConfig { method: Method::None, ..AdapterConfig::default() };
        grid.entries.push(other);
        grid.entries.push(Entry { name: "base".into(), adapter: none, ..Entry::default() });
        let points = grid.points();
        let told: Vec<_> = points
            .iter()
            .map(|p| (p.name.as_str(), p.adapter.match_params, grid.reference_of(p, &points)))
            .collect();
        assert_eq!(
            told,
            [
                ("a ≤ 5000", 5000, None),
                ("a ≤ 9000", 9000, None),
                ("b ≤ 2000", 2000, None),
                ("b ≤ 9000", 9000, Some("a ≤ 9000".to_owned())),
                ("base", 0, None),
            ]
        );
        // What trains nothing runs once.
        let ran = play(&grid, |_| 0.5);
        assert_eq!(ran.len(), 4 * 3 + 1, "{ran:?}");
    }

    /// The best rate is known when all are tried: until then the other seeds wait, and no run begins twice.
    #[test]
    fn runs_wait_for_those_in_progress_that_choose_their_rate() {
        let grid = grid(&[1e-3, 1e-2], 0, &[1, 2]);
        let points = grid.points();
        let run = |lr: f64, seed: u64| (points[0].clone(), lr, seed);
        let done = |lr: f64| Trial { validation: lr, ..Trial::new(&points[0].name, lr, 1, None, 0.0) };
        assert_eq!(grid.next(&points, &[], &[run(1e-3, 1)]), Some(run(1e-2, 1)));
        assert_eq!(grid.next(&points, &[], &[run(1e-3, 1), run(1e-2, 1)]), None);
        assert_eq!(grid.next(&points, &[done(1e-3)], &[run(1e-2, 1)]), None);
        let both = [done(1e-3), done(1e-2)];
        assert_eq!(grid.next(&points, &both, &[]), Some(run(1e-2, 2)));
        assert_eq!(grid.next(&points, &both, &[run(1e-2, 2)]), None);
    }
}
