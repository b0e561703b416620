//! `kron-train compare`: methods × learning rates × seeds on one task.
//!
//! Every run is one row of a CSV file, written when it is done; rows that are
//! there already are not run again. Of each method the rate with the best mean
//! on the validation set is taken, and only that rate's test scores count.

use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use crate::config::{AdapterConfig, Config};
use crate::data::Dataset;
use crate::error::{Result, file, invalid};
use crate::kept::keep;
use crate::model::Weights;
use crate::process::{peak_mib, restart_peak};
use crate::progress::Progress;
use crate::report::{markdown as markdown_table, p_value, study};
use crate::run::{Log, Stop, read_log, run};
use crate::stats::{deviation, interval, mean, paired_by};

/// The grid, as its TOML file says it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Everything that the runs share; its adapter, rate and seed are overwritten.
    pub base: Config,
    /// Learning rates.
    pub rates: Vec<f64>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// How many of the seeds, from the first on, try every rate; the others run an entry's
    /// best rate alone. 0 tries every rate with every seed.
    #[serde(default)]
    pub screen: usize,
    /// What is compared.
    pub entries: Vec<Entry>,
    /// The entry that the others are tested against.
    pub reference: String,
}

/// One method of a grid.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What the tables call it.
    pub name: String,
    /// Other rates than the grid's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<f64>,
    /// The method and its shape.
    pub adapter: AdapterConfig,
}

/// One run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Trial {
    /// The entry.
    pub name: String,
    /// The method with its shapes.
    pub method: String,
    /// Trained numbers, the head's not counted.
    pub params: usize,
    /// Learning rate.
    pub rate: f64,
    /// Seed.
    pub seed: u64,
    /// Merit on the validation set: accuracy, or −loss.
    pub validation: f64,
    /// The same on the test set.
    pub test: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Mean processor seconds of a step, over all threads.
    pub step_cpu_seconds: Option<f64>,
    /// Highest resident memory in MiB.
    pub peak_mib: Option<f64>,
    /// Most MiB in use on the GPU.
    pub device_mib: Option<u64>,
}

impl Grid {
    /// The file that says the same, every value written out.
    ///
    /// # Errors
    /// A path that is no Unicode.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| invalid(format!("the grid cannot be written: {e}")))
    }

    /// Reads a grid.
    ///
    /// # Errors
    /// A file that is no grid, and a reference that is none of its entries.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
        let grid: Self = toml::from_str(&text).map_err(|e| file(path, e))?;
        if grid.seeds.is_empty() || grid.entries.iter().any(|e| e.rates.is_empty() && grid.rates.is_empty()) {
            return Err(file(path, "has no seed or no rate, but every entry runs with at least one"));
        }
        match grid.entries.iter().any(|e| e.name == grid.reference) {
            true => Ok(grid),
            false => {
                Err(file(path, format!("has reference {:?}, which is none of its entries", grid.reference)))
            }
        }
    }

    fn rates<'g>(&'g self, entry: &'g Entry) -> &'g [f64] {
        if entry.rates.is_empty() { &self.rates } else { &entry.rates }
    }

    /// The seeds that try every rate, and those that run the best alone.
    fn stages(&self) -> (&[u64], &[u64]) {
        let all = if self.screen == 0 { self.seeds.len() } else { self.screen.min(self.seeds.len()) };
        self.seeds.split_at(all)
    }

    /// The rate with the best mean on the validation set, of those that `trials` tried in the first stage; of
    /// equal ones the highest rate.
    fn best_rate(&self, entry: &Entry, trials: &[Trial]) -> Option<f64> {
        let seeds = self.stages().0;
        let merit = |rate: f64| {
            let tried = trials.iter().filter(|t| t.name == entry.name && t.rate == rate);
            mean(&tried.filter(|t| seeds.contains(&t.seed)).map(|t| t.validation).collect::<Vec<_>>())
        };
        let merits = self.rates(entry).iter().map(|rate| (*rate, merit(*rate)));
        let best = merits
            .filter(|(_, merit)| !merit.is_nan())
            .max_by(|a, b| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0)));
        best.map(|(rate, _)| rate)
    }

    /// `k of n runs done` where the grid is not whole.
    pub fn unfinished(&self, trials: &[Trial]) -> Option<String> {
        let (every, best) = self.stages();
        let done = |entry: &Entry, rate: f64, seeds: &[u64]| {
            let has =
                |seed: u64| trials.iter().any(|t| t.name == entry.name && t.rate == rate && t.seed == seed);
            seeds.iter().filter(|seed| has(**seed)).count()
        };
        let (mut k, mut n) = (0, 0);
        for entry in &self.entries {
            let rates = self.rates(entry);
            n += rates.len() * every.len() + best.len();
            k += rates.iter().map(|rate| done(entry, *rate, every)).sum::<usize>();
            k += self.best_rate(entry, trials).map_or(0, |rate| done(entry, rate, best));
        }
        (k < n).then(|| format!("{k} of {n} runs done"))
    }

    /// The first run that `trials` lacks: seed by seed, so that what is done is balanced when time runs out.
    fn next(&self, trials: &[Trial]) -> Option<(&Entry, f64, u64)> {
        let (every, best) = self.stages();
        let is_done = |name: &str, rate: f64, seed: u64| {
            trials.iter().any(|t| t.name == name && t.rate == rate && t.seed == seed)
        };
        let with = |seed: u64, rates: &dyn Fn(&Entry) -> Vec<f64>| {
            self.entries.iter().find_map(|entry| {
                let rate = rates(entry).into_iter().find(|rate| !is_done(&entry.name, *rate, seed))?;
                Some((entry, rate, seed))
            })
        };
        let all = |entry: &Entry| self.rates(entry).to_vec();
        let one = |entry: &Entry| self.best_rate(entry, trials).into_iter().collect();
        every
            .iter()
            .find_map(|seed| with(*seed, &all))
            .or_else(|| best.iter().find_map(|seed| with(*seed, &one)))
    }
}

/// Runs what is missing in `folder/trials.csv`, then writes `folder/report.html`.
///
/// # Errors
/// What a run refuses; a loss that is no number counts as the worst merit and stops nothing.
pub fn compare(
    grid: &Grid,
    weights: &Weights,
    data: &Dataset,
    folder: &Path,
    stop: &Stop,
    progress: &Progress,
    mut done: impl FnMut(&Trial),
) -> Result<Vec<Trial>> {
    std::fs::create_dir_all(folder).map_err(|e| file(folder, e))?;
    let path = folder.join("trials.csv");
    let mut trials: Vec<Trial> = read_log(&path)?;
    keep(folder, &grid.text()?, &grid.base, &grid.entries)?;
    let mut log = Log::start(&path, &trials)?;
    while !stop.is_asked()
        && let Some((entry, rate, seed)) = grid.next(&trials)
    {
        let mut config = grid.base.clone();
        config.adapter = entry.adapter.clone();
        (config.train.rate, config.train.seed) = (rate, seed);
        restart_peak();
        let outcome = match run(&config, weights, data, None, stop, progress) {
            Err(crate::error::Error::Diverged { .. } | crate::error::Error::Exploded { .. }) => None,
            other => Some(other?),
        };
        if stop.is_asked() {
            break;
        }
        let (Some(validation), Some(test)) = (&data.validation, &data.test) else {
            return Err(invalid("a comparison needs a validation and a test set"));
        };
        let worst = -((validation.len() + test.len()) as f64);
        let merit = |score: Option<crate::learner::Score>| score.map_or(worst, |s| s.merit());
        let trial = Trial {
            name: entry.name.clone(),
            method: outcome.as_ref().map_or("diverged".into(), |o| o.learner.description().to_owned()),
            params: outcome.as_ref().map_or(0, |o| o.learner.body_params()),
            rate,
            seed,
            validation: merit(outcome.as_ref().and_then(|o| o.validation)),
            test: merit(outcome.as_ref().and_then(|o| o.test)),
            step_seconds: outcome.as_ref().map_or(f64::NAN, |o| o.step_seconds()),
            step_cpu_seconds: outcome.as_ref().and_then(|o| o.step_cpu_seconds()),
            peak_mib: peak_mib(),
            device_mib: outcome.as_ref().and_then(|o| o.device_mib()),
        };
        log.add(&trial)?;
        done(&trial);
        trials.push(trial);
    }
    let html = html(grid, &trials)?;
    write_atomic(&folder.join("report.html"), IfExists::Replace, |out| out.write_all(html.as_bytes()))?;
    Ok(trials)
}

/// One line of the result: an entry at its best rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The entry.
    pub name: String,
    /// The method with its shapes.
    pub method: String,
    /// Trained numbers, the head's not counted.
    pub params: usize,
    /// The rate with the best mean on the validation set; of equal ones the highest.
    pub rate: f64,
    /// Test merits, by seed.
    pub test: Vec<(u64, f64)>,
    /// p-value against the reference on the seeds that both have; `None` for the reference itself.
    pub p: Option<f64>,
    /// Mean over the seeds of the median time of a step; none of a run that diverged.
    pub step_seconds: Option<f64>,
    /// Mean over the seeds of the mean processor time of a step.
    pub step_cpu_seconds: Option<f64>,
    /// Lowest of the peaks: an allocator may still hold what an earlier run gave back.
    pub peak_mib: Option<f64>,
    /// Lowest of the GPU's peaks.
    pub device_mib: Option<u64>,
}

/// Picks each entry's rate on the validation set, and tests it against the
/// reference. Trials that are no run of the grid are left out.
pub fn lines(grid: &Grid, trials: &[Trial]) -> Vec<Line> {
    let mut lines: Vec<Line> = grid.entries.iter().filter_map(|entry| line(grid, entry, trials)).collect();
    let reference = lines.iter().find(|l| l.name == grid.reference).map(|l| l.test.clone());
    for line in lines.iter_mut().filter(|l| l.name != grid.reference) {
        line.p = reference.as_ref().map(|reference| paired_by(&line.test, reference));
    }
    lines
}

fn line(grid: &Grid, entry: &Entry, trials: &[Trial]) -> Option<Line> {
    let rate = grid.best_rate(entry, trials)?;
    let best: Vec<&Trial> = trials
        .iter()
        .filter(|t| t.name == entry.name && t.rate == rate && grid.seeds.contains(&t.seed))
        .collect();
    let clock: Vec<f64> = best.iter().map(|t| t.step_seconds).collect();
    let cpu: Option<Vec<f64>> = best.iter().map(|t| t.step_cpu_seconds).collect();
    Some(Line {
        name: entry.name.clone(),
        method: best[0].method.clone(),
        params: best[0].params,
        rate,
        test: best.iter().map(|t| (t.seed, t.test)).collect(),
        p: None,
        step_seconds: Some(mean(&clock)).filter(|seconds| seconds.is_finite()),
        step_cpu_seconds: cpu.map(|cpu| mean(&cpu)),
        peak_mib: best.iter().filter_map(|t| t.peak_mib).min_by(f64::total_cmp),
        device_mib: best.iter().filter_map(|t| t.device_mib).min(),
    })
}

/// Column heads and cells of the result.
pub fn cells(lines: &[Line]) -> ([&'static str; 12], Vec<Vec<String>>) {
    let head = [
        "entry",
        "method",
        "parameters",
        "rate",
        "seeds",
        "test",
        "sd",
        "95 % interval",
        "p",
        "ms a step",
        "CPU ms a step",
        "peak MiB",
    ];
    let row = |line: &Line| {
        let values: Vec<f64> = line.test.iter().map(|(_, v)| 100.0 * v).collect();
        let (low, high) = interval(&values);
        let milliseconds = |s: Option<f64>| s.map_or("–".into(), |s| format!("{:.0}", 1000.0 * s));
        vec![
            line.name.clone(),
            line.method.clone(),
            line.params.to_string(),
            format!("{:e}", line.rate),
            values.len().to_string(),
            format!("{:.2}", mean(&values)),
            format!("{:.2}", deviation(&values)),
            format!("{low:.2} … {high:.2}"),
            p_value(line.p),
            milliseconds(line.step_seconds),
            milliseconds(line.step_cpu_seconds),
            line.peak_mib.map_or("–".into(), |mib| format!("{mib:.0}"))
                + &line.device_mib.map_or(String::new(), |mib| format!(", GPU {mib}")),
        ]
    };
    (head, lines.iter().map(row).collect())
}

/// The result as a Markdown table.
pub fn markdown(lines: &[Line]) -> String {
    let (head, rows) = cells(lines);
    markdown_table(&head, &rows)
}

fn html(grid: &Grid, trials: &[Trial]) -> Result<String> {
    let (head, rows) = cells(&lines(grid, trials));
    let unfinished = grid.unfinished(trials).map_or(String::new(), |done| format!("Not whole: {done}. "));
    let note = format!(
        "{unfinished}Accuracy in percent (or −100·loss). Each entry at the rate with the best mean on the validation \
         set; p is of a paired t-test against {}.",
        grid.reference
    );
    Ok(study("Methods compared", &note, (&head, &rows), &grid.text()?))
}
