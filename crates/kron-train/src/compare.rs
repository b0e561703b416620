//! `kron-train compare`: methods × learning rates × seeds on one task.
//!
//! Every run is one row of a CSV file, written when it is done; rows that are
//! there already are not run again. Of each method the rate with the best mean
//! on the validation set is taken, and only that rate's test scores count.

use std::path::Path;

use kron_candle::Existing;
use kron_core::io::write_atomic;
use serde::{Deserialize, Serialize};

use crate::config::{AdapterConfig, Config};
use crate::data::Dataset;
use crate::error::{Result, file, invalid};
use crate::model::Weights;
use crate::process::{peak_mib, restart_peak};
use crate::progress::Progress;
use crate::report::{escape, page, table};
use crate::run::{Log, Stop, read_log, run};
use crate::stats::{deviation, interval, mean, paired};

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
}

impl Grid {
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

    /// Every run, seed by seed, so that what is done is balanced when time runs out.
    fn runs<'g>(&'g self) -> impl Iterator<Item = (&'g Entry, f64, u64)> {
        let of_entry = |entry: &'g Entry| {
            let rates = if entry.rates.is_empty() { &self.rates } else { &entry.rates };
            rates.iter().map(move |rate| (entry, *rate))
        };
        self.seeds.iter().flat_map(move |seed| {
            self.entries.iter().flat_map(of_entry).map(move |(entry, rate)| (entry, rate, *seed))
        })
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
    let mut log = Log::start(&path, &trials)?;
    for (entry, rate, seed) in grid.runs() {
        if trials.iter().any(|t| t.name == entry.name && t.rate == rate && t.seed == seed) {
            continue;
        }
        let mut config = grid.base.clone();
        config.adapter = entry.adapter.clone();
        (config.train.rate, config.train.seed) = (rate, seed);
        restart_peak();
        let outcome = match run(&config, weights, data, None, stop, progress) {
            Err(crate::error::Error::Diverged { .. }) => None,
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
        };
        log.add(&trial)?;
        done(&trial);
        trials.push(trial);
    }
    let html = html(grid, &trials)?;
    write_atomic(&folder.join("report.html"), Existing::Replace, |out| out.write_all(html.as_bytes()))?;
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
    /// The rate with the best mean on the validation set.
    pub rate: f64,
    /// Test merits, by seed.
    pub test: Vec<(u64, f64)>,
    /// p-value against the reference on the seeds that both have; `None` for the reference itself.
    pub p: Option<f64>,
    /// Mean over the seeds of the mean processor time of a step.
    pub step_cpu_seconds: Option<f64>,
    /// Highest of the peaks.
    pub peak_mib: Option<f64>,
}

/// Picks each entry's rate on the validation set, and tests it against the
/// reference. Trials that are no run of the grid are left out.
pub fn lines(grid: &Grid, trials: &[Trial]) -> Vec<Line> {
    let meant =
        |t: &&Trial| grid.runs().any(|(e, rate, seed)| (&e.name, rate, seed) == (&t.name, t.rate, t.seed));
    let trials: Vec<&Trial> = trials.iter().filter(meant).collect();
    let mut lines: Vec<Line> = grid.entries.iter().filter_map(|entry| line(&entry.name, &trials)).collect();
    let reference = lines.iter().find(|l| l.name == grid.reference).map(|l| l.test.clone());
    for line in lines.iter_mut().filter(|l| l.name != grid.reference) {
        let Some(reference) = &reference else { continue };
        let pairs = line.test.iter().filter_map(|(seed, value)| {
            let other = reference.iter().find(|(other, _)| other == seed)?;
            Some((*value, other.1))
        });
        let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.unzip();
        line.p = Some(paired(&ours, &theirs));
    }
    lines
}

fn line(name: &str, trials: &[&Trial]) -> Option<Line> {
    let ours: Vec<&Trial> = trials.iter().copied().filter(|t| t.name == name).collect();
    let at = |rate: f64| ours.iter().filter(move |t| t.rate == rate);
    let merit = |rate: f64| mean(&at(rate).map(|t| t.validation).collect::<Vec<_>>());
    let rate = ours.iter().map(|t| t.rate).max_by(|a, b| merit(*a).total_cmp(&merit(*b)))?;
    let best: Vec<&&Trial> = at(rate).collect();
    let cpu: Option<Vec<f64>> = best.iter().map(|t| t.step_cpu_seconds).collect();
    Some(Line {
        name: name.into(),
        method: best[0].method.clone(),
        params: best[0].params,
        rate,
        test: best.iter().map(|t| (t.seed, t.test)).collect(),
        p: None,
        step_cpu_seconds: cpu.map(|cpu| mean(&cpu)),
        peak_mib: best.iter().filter_map(|t| t.peak_mib).max_by(f64::total_cmp),
    })
}

/// Column heads and cells of the result.
pub fn cells(lines: &[Line]) -> ([&'static str; 11], Vec<Vec<String>>) {
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
        "CPU ms a step",
        "peak MiB",
    ];
    let row = |line: &Line| {
        let values: Vec<f64> = line.test.iter().map(|(_, v)| 100.0 * v).collect();
        let (low, high) = interval(&values);
        vec![
            line.name.clone(),
            line.method.clone(),
            line.params.to_string(),
            format!("{:e}", line.rate),
            values.len().to_string(),
            format!("{:.2}", mean(&values)),
            format!("{:.2}", deviation(&values)),
            format!("{low:.2} … {high:.2}"),
            line.p.map_or("–".into(), |p| format!("{p:.3}")),
            line.step_cpu_seconds.map_or("–".into(), |s| format!("{:.0}", 1000.0 * s)),
            line.peak_mib.map_or("–".into(), |mib| format!("{mib:.0}")),
        ]
    };
    (head, lines.iter().map(row).collect())
}

/// The result as a Markdown table.
pub fn markdown(lines: &[Line]) -> String {
    let (head, rows) = cells(lines);
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = line(head.iter().map(|_| "---".to_owned()).collect());
    let head = line(head.iter().map(|h| h.to_string()).collect());
    head + &rule + &rows.into_iter().map(line).collect::<String>()
}

fn html(grid: &Grid, trials: &[Trial]) -> Result<String> {
    let (head, rows) = cells(&lines(grid, trials));
    let settings = toml::to_string(grid).map_err(|e| invalid(format!("the grid cannot be written: {e}")))?;
    let note = format!(
        "<p>Accuracy in percent (or −100·loss). Each entry at the rate with the best mean on the validation \
         set; p is of a paired t-test against {}.</p>\n",
        escape(&grid.reference)
    );
    let body = [note, table(&head, &rows), format!("<pre>{}</pre>\n", escape(&settings))].concat();
    Ok(page("Methods compared", &body))
}
