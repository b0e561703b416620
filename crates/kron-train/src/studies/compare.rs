//! `kron-train compare`: methods × learning rates × seeds on one task.
//!
//! Every run adds one row to a CSV file when it ends, and is not repeated if its row exists. Each method's learning
//! rate is the one with the best mean on the validation set; the result takes test scores of that rate alone.

use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use super::grid_file::{Entry, check_and_save, check_entries, check_runs};
use super::stats::{deviation, interval, mean, paired_by};
use super::table::{markdown as markdown_table, p_value};
use crate::config::Config;
use crate::data::Dataset;
use crate::error::{Error, Result, file, invalid};
use crate::files;
use crate::model::Weights;
use crate::report::study;
use crate::run::resources::{peak_mib, restart_peak};
use crate::run::{Log, Outcome, Progress, Score, Stop, read_log, run};

/// Name of the file of trials.
const ROWS: &str = "trials.csv";

/// Grid of a comparison, as its TOML file holds it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonGrid {
    /// Settings shared by all runs, except adapter, learning rate and seed.
    pub base: Config,
    /// Learning rates.
    #[serde(alias = "rates")]
    pub lrs: Vec<f64>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Number of leading seeds that try every learning rate; the others run an entry's best one alone.
    ///
    /// 0 tries every learning rate with every seed.
    #[serde(default)]
    pub screen: usize,
    /// Methods to compare.
    pub entries: Vec<Entry>,
    /// Name of the entry that the others are tested against.
    pub reference: String,
}

/// One run: a row of `trials.csv`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Trial {
    /// Name of the entry.
    pub name: String,
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the head's.
    pub params: usize,
    /// Learning rate.
    #[serde(alias = "rate")]
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Score on the validation set: accuracy, or −loss.
    pub validation: f64,
    /// Score on the test set: accuracy, or −loss.
    pub test: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Mean processor seconds of a step, over all threads.
    pub step_cpu_seconds: Option<f64>,
    /// Highest resident memory in MiB.
    pub peak_mib: Option<f64>,
    /// Highest GPU memory in use, in MiB.
    pub device_mib: Option<u64>,
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
        if grid.seeds.is_empty() || grid.entries.iter().any(|e| e.lrs.is_empty() && grid.lrs.is_empty()) {
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
        let lrs = self.entries.iter().map(|entry| self.lrs(entry).len()).max().unwrap_or(0);
        check_runs([self.seeds.len(), lrs, self.entries.len()])?;
        if self.screen > self.seeds.len() {
            let (screen, seeds) = (self.screen, self.seeds.len());
            return Err(invalid(format!(
                "screen is {screen}, but it is an integer from 0 to the {seeds} seeds"
            )));
        }
        for entry in &self.entries {
            for (lr, seed) in
                self.lrs(entry).iter().flat_map(|lr| self.seeds.iter().map(move |seed| (lr, seed)))
            {
                self.config(entry, *lr, *seed).check()?;
            }
        }
        Ok(())
    }

    fn config(&self, entry: &Entry, lr: f64, seed: u64) -> Config {
        let mut config = self.base.clone();
        config.adapter = entry.adapter.clone();
        (config.train.lr, config.train.seed) = (lr, seed);
        config
    }

    fn lrs<'g>(&'g self, entry: &'g Entry) -> &'g [f64] {
        if entry.lrs.is_empty() { &self.lrs } else { &entry.lrs }
    }

    /// Returns the seeds that try every learning rate, and those that run the best one alone.
    fn stages(&self) -> (&[u64], &[u64]) {
        let all = if self.screen == 0 { self.seeds.len() } else { self.screen.min(self.seeds.len()) };
        self.seeds.split_at(all)
    }

    /// Returns the learning rate with the best mean on the validation set over the first stage's trials; the higher
    /// one of equals.
    fn best_lr(&self, entry: &Entry, trials: &[Trial]) -> Option<f64> {
        let seeds = self.stages().0;
        let score = |lr: f64| {
            let tried = trials.iter().filter(|t| t.name == entry.name && t.lr == lr);
            mean(&tried.filter(|t| seeds.contains(&t.seed)).map(|t| t.validation).collect::<Vec<_>>())
        };
        let scores = self.lrs(entry).iter().map(|lr| (*lr, score(*lr)));
        let best = scores
            .filter(|(_, score)| !score.is_nan())
            .max_by(|a, b| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0)));
        best.map(|(lr, _)| lr)
    }

    /// Returns `k of n runs done`, or `None` if all are.
    pub fn unfinished(&self, trials: &[Trial]) -> Option<String> {
        let (every, best) = self.stages();
        let done = |entry: &Entry, lr: f64, seeds: &[u64]| {
            let has = |seed: u64| trials.iter().any(|t| t.name == entry.name && t.lr == lr && t.seed == seed);
            seeds.iter().filter(|seed| has(**seed)).count()
        };
        let (mut k, mut n) = (0, 0);
        for entry in &self.entries {
            let lrs = self.lrs(entry);
            n += lrs.len() * every.len() + best.len();
            k += lrs.iter().map(|lr| done(entry, *lr, every)).sum::<usize>();
            k += self.best_lr(entry, trials).map_or(0, |lr| done(entry, lr, best));
        }
        (k < n).then(|| format!("{k} of {n} runs done"))
    }

    /// Returns the first missing run, seed by seed, so that a comparison cut short is balanced.
    fn next(&self, trials: &[Trial]) -> Option<(&Entry, f64, u64)> {
        let (every, best) = self.stages();
        let is_done = |name: &str, lr: f64, seed: u64| {
            trials.iter().any(|t| t.name == name && t.lr == lr && t.seed == seed)
        };
        let with = |seed: u64, lrs: &dyn Fn(&Entry) -> Vec<f64>| {
            self.entries.iter().find_map(|entry| {
                let lr = lrs(entry).into_iter().find(|lr| !is_done(&entry.name, *lr, seed))?;
                Some((entry, lr, seed))
            })
        };
        let all = |entry: &Entry| self.lrs(entry).to_vec();
        let one = |entry: &Entry| self.best_lr(entry, trials).into_iter().collect();
        every
            .iter()
            .find_map(|seed| with(*seed, &all))
            .or_else(|| best.iter().find_map(|seed| with(*seed, &one)))
    }
}

/// Runs the trials missing in `folder/trials.csv`, then writes `folder/report.html`.
///
/// A run whose loss or gradient is not finite gets the worst score, and the comparison continues.
///
/// # Errors
/// Another error of a run, a folder that holds anything but this comparison, or a file that cannot be written.
pub fn compare(
    grid: &ComparisonGrid,
    weights: &Weights,
    data: &Dataset,
    folder: &Path,
    stop: &Stop,
    progress: &Progress,
    mut done: impl FnMut(&Trial),
) -> Result<Vec<Trial>> {
    let path = folder.join(ROWS);
    let _lock = check_and_save(folder, &grid.text()?, &grid.base, &grid.entries, |name| name == ROWS)?;
    let mut trials: Vec<Trial> = read_log(&path)?;
    let mut log = Log::start(&path, &trials)?;
    while !stop.is_requested()
        && let Some((entry, lr, seed)) = grid.next(&trials)
    {
        let config = grid.config(entry, lr, seed);
        restart_peak();
        let outcome = match run(&config, weights, data, None, stop, progress) {
            Err(Error::Diverged { .. } | Error::Exploded { .. }) => None,
            other => Some(other?),
        };
        if stop.is_requested() {
            break;
        }
        let (Some(validation), Some(test)) = (&data.validation, &data.test) else {
            return Err(invalid("a comparison needs a validation and a test set"));
        };
        let worst = -((validation.len() + test.len()) as f64);
        let trial = trial(&entry.name, lr, seed, outcome.as_ref(), worst);
        log.add(&trial)?;
        done(&trial);
        trials.push(trial);
    }
    let html = html(grid, &trials)?;
    write_atomic(&folder.join("report.html"), IfExists::Replace, |out| out.write_all(html.as_bytes()))?;
    Ok(trials)
}

/// Makes the row of a run; without an outcome it diverged.
fn trial(name: &str, lr: f64, seed: u64, outcome: Option<&Outcome>, worst: f64) -> Trial {
    let value = |score: Option<Score>| score.map_or(worst, |s| s.value());
    Trial {
        name: name.to_owned(),
        method: outcome.map_or("diverged".into(), |o| o.learner.description().to_owned()),
        params: outcome.map_or(0, |o| o.learner.body_params()),
        lr,
        seed,
        validation: value(outcome.and_then(|o| o.validation)),
        test: value(outcome.and_then(|o| o.test)),
        step_seconds: outcome.map_or(f64::NAN, Outcome::step_seconds),
        step_cpu_seconds: outcome.and_then(Outcome::step_cpu_seconds),
        peak_mib: peak_mib(),
        device_mib: outcome.and_then(Outcome::device_mib),
    }
}

/// Result of an entry at its best learning rate: one row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct EntrySummary {
    /// Name of the entry.
    pub name: String,
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the head's.
    pub params: usize,
    /// Learning rate with the best mean on the validation set; the higher one of equals.
    pub lr: f64,
    /// Test scores by seed.
    pub test: Vec<(u64, f64)>,
    /// p-value against the reference on the seeds of both; `None` for the reference itself.
    pub p: Option<f64>,
    /// Mean over the seeds of the median time of a step; `None` after a run that diverged.
    pub step_seconds: Option<f64>,
    /// Mean over the seeds of the mean processor time of a step.
    pub step_cpu_seconds: Option<f64>,
    /// Lowest peak over the seeds: the allocator may still hold memory of an earlier run.
    pub peak_mib: Option<f64>,
    /// Lowest peak of the GPU over the seeds.
    pub device_mib: Option<u64>,
}

/// Picks each entry's learning rate on the validation set, and tests it against the reference.
///
/// Trials outside the grid are ignored.
pub fn summarise(grid: &ComparisonGrid, trials: &[Trial]) -> Vec<EntrySummary> {
    let mut all: Vec<EntrySummary> =
        grid.entries.iter().filter_map(|entry| summary(grid, entry, trials)).collect();
    let reference = all.iter().find(|s| s.name == grid.reference).map(|s| s.test.clone());
    for summary in all.iter_mut().filter(|s| s.name != grid.reference) {
        summary.p = reference.as_ref().map(|reference| paired_by(&summary.test, reference));
    }
    all
}

fn summary(grid: &ComparisonGrid, entry: &Entry, trials: &[Trial]) -> Option<EntrySummary> {
    let lr = grid.best_lr(entry, trials)?;
    let best: Vec<&Trial> = trials
        .iter()
        .filter(|t| t.name == entry.name && t.lr == lr && grid.seeds.contains(&t.seed))
        .collect();
    let clock: Vec<f64> = best.iter().map(|t| t.step_seconds).collect();
    let cpu: Option<Vec<f64>> = best.iter().map(|t| t.step_cpu_seconds).collect();
    Some(EntrySummary {
        name: entry.name.clone(),
        method: best[0].method.clone(),
        params: best[0].params,
        lr,
        test: best.iter().map(|t| (t.seed, t.test)).collect(),
        p: None,
        step_seconds: Some(mean(&clock)).filter(|seconds| seconds.is_finite()),
        step_cpu_seconds: cpu.map(|cpu| mean(&cpu)),
        peak_mib: best.iter().filter_map(|t| t.peak_mib).min_by(f64::total_cmp),
        device_mib: best.iter().filter_map(|t| t.device_mib).min(),
    })
}

/// Renders the column heads and cells of the result.
fn cells(summaries: &[EntrySummary]) -> ([&'static str; 12], Vec<Vec<String>>) {
    let head = [
        "entry",
        "method",
        "parameters",
        "learning rate",
        "seeds",
        "test",
        "sd",
        "95 % interval",
        "p",
        "ms a step",
        "CPU ms a step",
        "peak MiB",
    ];
    let row = |summary: &EntrySummary| {
        let values: Vec<f64> = summary.test.iter().map(|(_, v)| 100.0 * v).collect();
        let (low, high) = interval(&values);
        let milliseconds = |s: Option<f64>| s.map_or("–".into(), |s| format!("{:.0}", 1000.0 * s));
        vec![
            summary.name.clone(),
            summary.method.clone(),
            summary.params.to_string(),
            format!("{:e}", summary.lr),
            values.len().to_string(),
            format!("{:.2}", mean(&values)),
            format!("{:.2}", deviation(&values)),
            format!("{low:.2} … {high:.2}"),
            p_value(summary.p),
            milliseconds(summary.step_seconds),
            milliseconds(summary.step_cpu_seconds),
            summary.peak_mib.map_or("–".into(), |mib| format!("{mib:.0}"))
                + &summary.device_mib.map_or(String::new(), |mib| format!(", GPU {mib}")),
        ]
    };
    (head, summaries.iter().map(row).collect())
}

/// Renders the result as a Markdown table.
pub fn markdown(summaries: &[EntrySummary]) -> String {
    let (head, rows) = cells(summaries);
    markdown_table(&head, &rows)
}

fn html(grid: &ComparisonGrid, trials: &[Trial]) -> Result<String> {
    let (head, rows) = cells(&summarise(grid, trials));
    let unfinished = grid.unfinished(trials).map_or(String::new(), |done| format!("Incomplete: {done}. "));
    let note = format!(
        "{unfinished}Accuracy in percent (or −100·loss). Each entry has the learning rate with the best mean on the \
         validation set; p is the p-value of a paired t-test against {}.",
        grid.reference
    );
    study("Methods compared", &note, (&head, &rows), &grid.text()?)
}
