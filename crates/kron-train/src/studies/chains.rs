//! `kron-train sequential --grid`: entries × orders of tasks × seeds.
//!
//! Every chain adds one row to a CSV file when it ends, and is not repeated if its row exists. Entries are tested
//! against the reference on the chains that both have run.

use std::collections::BTreeMap;
use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use super::grid_file::{Entry, check_and_save, check_entries, check_runs, is_saved};
use super::jobs::{Jobs, Next, Schedule};
use super::sequential::{check_folder, sequential};
use super::shared_study::{self, SharedStudy, StudyState};
use super::stats::{deviation, interval, mean, paired_by};
use super::table::{markdown as markdown_table, p_value};
use crate::config::Config;
use crate::data::Dataset;
use crate::error::{Error, Result, file, invalid};
use crate::files;
use crate::model::Weights;
use crate::report::study;

/// Name of the file of results.
const ROWS: &str = "chains.csv";

/// Largest number of domains whose pairs are chains.
const MAX_PAIRED: usize = 100;

/// Grid of chains, as its TOML file holds it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ChainGrid {
    /// Settings shared by all chains, except adapter, seed and the learning rate of an entry with its own.
    pub base: Config,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Chains of domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Vec<String>>,
    /// Domains whose ordered pairs are further chains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<String>,
    /// Name of the entry that the others are tested against.
    pub reference: String,
    /// Methods to compare, each with at most one learning rate.
    pub entries: Vec<Entry>,
}

/// One chain of a grid.
#[derive(Clone, PartialEq)]
struct PlannedChain<'g> {
    /// Index of the entry in the grid.
    index: usize,
    entry: &'g Entry,
    /// Domains in order.
    order: Vec<String>,
    seed: u64,
}

/// Result of one chain: a row of `chains.csv`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChainResult {
    /// Name of the entry.
    pub name: String,
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the heads'.
    pub params: usize,
    /// Learning rate.
    #[serde(alias = "rate")]
    pub lr: f64,
    /// Domains in order, separated by ` > `.
    pub order: String,
    /// Seed.
    pub seed: u64,
    /// Mean accuracy on all tasks after the last.
    pub final_mean: f64,
    /// Mean change of the earlier tasks' accuracy since they were learned.
    pub backward_transfer: f64,
    /// Mean drop of the earlier tasks' accuracy from their best.
    pub forgetting: f64,
}

impl ChainGrid {
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
    /// The file is not a grid, has no chain or seed, an entry has two learning rates, or the reference is not an
    /// entry.
    pub fn read(path: &Path) -> Result<Self> {
        let grid: Self = files::toml(path)?;
        if grid.pairs.len() > MAX_PAIRED {
            let n = grid.pairs.len();
            return Err(file(path, format!("pairs {n} domains, but at most {MAX_PAIRED}")));
        }
        if grid.seeds.is_empty() || grid.orders().is_empty() {
            return Err(file(path, "has no seed or no order of domains, but a chain needs one of each"));
        }
        if let Some(entry) = grid.entries.iter().find(|e| e.lrs.len() > 1) {
            let (name, n) = (&entry.name, entry.lrs.len());
            return Err(file(path, format!("gives {name:?} {n} learning rates, but a chain runs with one")));
        }
        if let Some(entry) = grid.entries.iter().find(|e| !e.budgets.is_empty()) {
            return Err(file(path, format!("gives {:?} budgets, which only a comparison has", entry.name)));
        }
        let plain = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && !name.contains(|c: char| c.is_control() || "/\\".contains(c))
        };
        if let Some(name) = grid.domains().iter().find(|name| !plain(name)) {
            return Err(file(path, format!("has the domain {name:?}, which is no name for a folder")));
        }
        check_entries(&grid.entries, &grid.reference).map_err(|e| file(path, e))?;
        check_runs([grid.seeds.len(), grid.orders().len(), grid.entries.len()]).map_err(|e| file(path, e))?;
        grid.chains().try_for_each(|chain| grid.config(&chain).check()).map_err(|e| file(path, e))?;
        Ok(grid)
    }

    /// Returns all chains of domains: those listed, then the pairs.
    pub fn orders(&self) -> Vec<Vec<String>> {
        let pairs = self.pairs.iter().flat_map(|first| {
            let others = self.pairs.iter().filter(move |second| *second != first);
            others.map(move |second| vec![first.clone(), second.clone()])
        });
        self.orders.iter().cloned().chain(pairs).collect()
    }

    /// Returns all domains, sorted.
    pub fn domains(&self) -> Vec<String> {
        let mut all = self.orders().concat();
        all.sort();
        all.dedup();
        all
    }

    fn lr(&self, entry: &Entry) -> f64 {
        entry.lrs.first().copied().unwrap_or(self.base.train.lr)
    }

    /// Returns all chains, seed by seed, so that a study cut short is balanced.
    fn chains(&self) -> impl Iterator<Item = PlannedChain<'_>> {
        let orders = self.orders();
        self.seeds.iter().flat_map(move |seed| {
            let each = orders.clone().into_iter().flat_map(move |order| {
                let chain =
                    move |(index, entry)| PlannedChain { index, entry, order: order.clone(), seed: *seed };
                self.entries.iter().enumerate().map(chain)
            });
            each.collect::<Vec<_>>()
        })
    }

    fn is_done(&self, chain: &PlannedChain, results: &[ChainResult]) -> bool {
        let (name, lr, order) = (&chain.entry.name, self.lr(chain.entry), chain.order.join(" > "));
        results.iter().any(|r| r.name == *name && r.lr == lr && r.order == order && r.seed == chain.seed)
    }

    fn config(&self, chain: &PlannedChain) -> Config {
        let mut config = self.base.clone();
        config.adapter = chain.entry.adapter.clone();
        (config.train.lr, config.train.seed) = (self.lr(chain.entry), chain.seed);
        config
    }
}

/// Returns `true` for the name of a chain's folder: index, domains, seed.
fn is_chain(name: &str) -> bool {
    let number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u64>().is_ok());
    let mut parts = name.split('-');
    number(parts.next()) && number(parts.next_back()) && parts.next().is_some()
}

/// Runs the chains missing in `folder/chains.csv`, each in its own folder, then writes `folder/report.html`.
///
/// The number of chains at a time changes the order of the rows
/// alone.
///
/// # Errors
/// An error of a chain, or a folder with other settings.
pub fn run<F: FnMut(&ChainResult) + Send>(
    grid: &ChainGrid,
    weights: &Weights,
    data: &BTreeMap<String, Dataset>,
    folder: &Path,
    schedule: &Schedule,
    done: F,
) -> Result<Vec<ChainResult>> {
    let is_own = |name: &str| name == ROWS || is_chain(name);
    let text = grid.text()?;
    check_and_save(folder, &text, &grid.base, &grid.entries, is_own)?;
    let study = SharedStudy { folder, rows: ROWS };
    let state: StudyState<PlannedChain, ChainResult> = study.open()?;
    let missing: Vec<_> = grid.chains().filter(|chain| !grid.is_done(chain, &state.rows)).collect();
    let subfolder = |chain: &PlannedChain| {
        folder.join(format!("{}-{}-{}", chain.index, chain.order.join("-"), chain.seed))
    };
    for chain in &missing {
        let order: Vec<&str> = chain.order.iter().map(String::as_str).collect();
        check_folder(&subfolder(chain), &grid.config(chain), &order)?;
    }
    // Within a chain the threads are its own.
    let (stop, shown) = (&schedule.stop, schedule.shown());
    let work = |planned: &PlannedChain| {
        let config = grid.config(planned);
        let tasks = planned.order.iter().map(|name| match data.get(name) {
            Some(data) => Ok((name.as_str(), data)),
            None => Err(invalid(format!("the domain {name:?} was not read"))),
        });
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let chain = sequential(&config, weights, &tasks, &subfolder(planned), stop, &shown)?;
        Ok(Some(ChainResult {
            name: planned.entry.name.clone(),
            method: chain.method.clone(),
            params: chain.params,
            lr: config.train.lr,
            order: planned.order.join(" > "),
            seed: planned.seed,
            final_mean: chain.final_mean(),
            backward_transfer: chain.backward_transfer(),
            forgetting: chain.forgetting(),
        }))
    };
    let run_folder = |chain: &PlannedChain| Ok(subfolder(chain));
    let first = |results: &[ChainResult], running: &[PlannedChain]| {
        missing.iter().find(|chain| !grid.is_done(chain, results) && !running.contains(chain)).cloned()
    };
    let jobs = Jobs {
        next: |(state, _): &mut (StudyState<_, _>, F), running: &[_]| match stop.is_requested() {
            true => Ok(Next::Nothing),
            false => study.next(state, running, run_folder, first),
        },
        work,
        done: |(state, done): &mut (StudyState<_, _>, F), chain: &_, result: ChainResult| {
            study.add(state, chain, result.clone())?;
            done(&result);
            Ok(())
        },
    };
    jobs.run(schedule, (state, done))?;
    let _lock = shared_study::lock(folder)?;
    let results: Vec<ChainResult> = study.read()?;
    if stop.is_requested() && first(&results, &[]).is_some() {
        return Err(Error::Stopped("stopped between two chains: repeat the command to go on".into()));
    }
    if !is_saved(folder, &text)? {
        // The process with the other grid writes the page.
        return Ok(results);
    }
    let html = html(grid, &results)?;
    write_atomic(&folder.join("report.html"), IfExists::Replace, |out| out.write_all(html.as_bytes()))?;
    Ok(results)
}

/// One measure of each chain, by its order and seed.
type Values = Vec<((String, u64), f64)>;

/// Result of an entry over all its chains: one row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainSummary {
    /// Name of the entry.
    pub name: String,
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the heads'.
    pub params: usize,
    /// Learning rate.
    pub lr: f64,
    /// Final mean, backward transfer and forgetting of each chain.
    pub measures: [Values; 3],
    /// p-values of the final mean and of the forgetting against the reference; `None` for the reference itself.
    pub p: Option<[f64; 2]>,
}

/// Summarises each entry's chains, and tests them against the reference.
///
/// Results outside the grid are ignored.
pub fn summarise(grid: &ChainGrid, results: &[ChainResult]) -> Vec<ChainSummary> {
    let orders: Vec<String> = grid.orders().iter().map(|order| order.join(" > ")).collect();
    let summary = |entry: &Entry| {
        let lr = grid.lr(entry);
        let in_grid = |r: &&ChainResult| {
            let of_entry = r.name == entry.name && r.lr == lr;
            of_entry && orders.contains(&r.order) && grid.seeds.contains(&r.seed)
        };
        let results: Vec<&ChainResult> = results.iter().filter(in_grid).collect();
        let values = |measure: fn(&ChainResult) -> f64| -> Values {
            results.iter().map(|r| ((r.order.clone(), r.seed), measure(r))).collect()
        };
        results.first().map(|first| ChainSummary {
            name: first.name.clone(),
            method: first.method.clone(),
            params: first.params,
            lr,
            measures: [values(|r| r.final_mean), values(|r| r.backward_transfer), values(|r| r.forgetting)],
            p: None,
        })
    };
    let mut all: Vec<ChainSummary> = grid.entries.iter().filter_map(summary).collect();
    let reference = all.iter().find(|s| s.name == grid.reference).map(|s| s.measures.clone());
    for summary in all.iter_mut().filter(|s| s.name != grid.reference) {
        summary.p = reference.as_ref().map(|r| [0, 2].map(|i| paired_by(&summary.measures[i], &r[i])));
    }
    all
}

fn cells(summaries: &[ChainSummary]) -> ([&'static str; 11], Vec<Vec<String>>) {
    let head = [
        "entry",
        "method",
        "parameters",
        "learning rate",
        "chains",
        "final mean",
        "95 % interval",
        "p",
        "backward transfer",
        "forgetting",
        "p",
    ];
    let row = |summary: &ChainSummary| {
        let [last, transfer, forgetting] = summary
            .measures
            .each_ref()
            .map(|values| -> Vec<f64> { values.iter().map(|(_, value)| 100.0 * value).collect() });
        let (low, high) = interval(&last);
        let p = |i: usize| p_value(summary.p.map(|p| p[i]));
        let spread = |values: &[f64]| format!("{:.2} ± {:.2}", mean(values), deviation(values));
        vec![
            summary.name.clone(),
            summary.method.clone(),
            summary.params.to_string(),
            format!("{:e}", summary.lr),
            last.len().to_string(),
            spread(&last),
            format!("{low:.2} … {high:.2}"),
            p(0),
            spread(&transfer),
            spread(&forgetting),
            p(1),
        ]
    };
    (head, summaries.iter().map(row).collect())
}

/// Renders the result as a Markdown table.
pub fn markdown(summaries: &[ChainSummary]) -> String {
    let (head, rows) = cells(summaries);
    markdown_table(&head, &rows)
}

fn html(grid: &ChainGrid, results: &[ChainResult]) -> Result<String> {
    let (head, cells) = cells(&summarise(grid, results));
    let note = format!(
        "In points, mean ± standard deviation over the chains; p is the p-value of a paired t-test against {}.",
        grid.reference
    );
    study("Chains of tasks compared", &note, (&head, &cells), &grid.text()?)
}
