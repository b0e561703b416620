//! `kron-train sequential --grid`: entries × orders of tasks × seeds.
//!
//! Every chain is one row of a CSV file, written when it is done; rows that are
//! there already are not run again. Entries are tested against the reference
//! on the chains that both have run.

use std::collections::BTreeMap;
use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use crate::compare::Entry;
use crate::config::Config;
use crate::data::Dataset;
use crate::error::{Result, file, invalid};
use crate::kept::keep;
use crate::model::Weights;
use crate::progress::Progress;
use crate::report::{markdown as markdown_table, p_value, study};
use crate::run::{Log, Stop, read_log};
use crate::sequential::sequential;
use crate::stats::{deviation, interval, mean, paired_by};

/// The grid, as its TOML file says it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// What the chains share; its adapter and seed are overwritten, its rate where an entry has its own.
    pub base: Config,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Chains of domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<Vec<String>>,
    /// Domains of which every ordered pair is a chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<String>,
    /// The entry that the others are tested against.
    pub reference: String,
    /// What is compared, each with one rate at most.
    pub entries: Vec<Entry>,
}

/// An entry's place and the entry, an order of domains, and a seed.
type Chosen<'g> = (usize, &'g Entry, Vec<String>, u64);

/// What one chain came to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// The entry.
    pub name: String,
    /// The method with its shapes.
    pub method: String,
    /// Trained numbers, the heads not counted.
    pub params: usize,
    /// Learning rate.
    pub rate: f64,
    /// The domains in order, with ` > ` between them.
    pub order: String,
    /// Seed.
    pub seed: u64,
    /// Mean accuracy on all tasks after the last.
    pub final_mean: f64,
    /// Mean change of the earlier tasks' accuracy.
    pub backward_transfer: f64,
    /// Mean loss from the best that a task had.
    pub forgetting: f64,
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
    /// A file that is no grid, no chain or seed, and a reference that is none of its entries.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
        let grid: Self = toml::from_str(&text).map_err(|e| file(path, e))?;
        if grid.seeds.is_empty() || grid.orders().is_empty() {
            return Err(file(path, "has no seed or no order of domains, but a chain needs one of each"));
        }
        if let Some(entry) = grid.entries.iter().find(|e| e.rates.len() > 1) {
            let n = entry.rates.len();
            return Err(file(path, format!("gives {:?} {n} rates, but a chain runs with one", entry.name)));
        }
        match grid.entries.iter().any(|e| e.name == grid.reference) {
            true => Ok(grid),
            false => {
                Err(file(path, format!("has reference {:?}, which is none of its entries", grid.reference)))
            }
        }
    }

    /// All chains of domains: those listed, then the pairs.
    pub fn orders(&self) -> Vec<Vec<String>> {
        let pairs = self.pairs.iter().flat_map(|first| {
            let others = self.pairs.iter().filter(move |second| *second != first);
            others.map(move |second| vec![first.clone(), second.clone()])
        });
        self.orders.iter().cloned().chain(pairs).collect()
    }

    /// Every domain that occurs, once.
    pub fn domains(&self) -> Vec<String> {
        let mut all = self.orders().concat();
        all.sort();
        all.dedup();
        all
    }

    fn rate(&self, entry: &Entry) -> f64 {
        entry.rates.first().copied().unwrap_or(self.base.train.rate)
    }

    /// Every chain, seed by seed, so that what is done is balanced when time runs out.
    fn chains(&self) -> impl Iterator<Item = Chosen<'_>> {
        let orders = self.orders();
        self.seeds.iter().flat_map(move |seed| {
            let each = orders.clone().into_iter().flat_map(move |order| {
                self.entries.iter().enumerate().map(move |(i, entry)| (i, entry, order.clone(), *seed))
            });
            each.collect::<Vec<_>>()
        })
    }

    fn is_done(&self, (_, entry, order, seed): &Chosen, rows: &[Row]) -> bool {
        let (rate, order) = (self.rate(entry), order.join(" > "));
        rows.iter().any(|r| r.name == entry.name && r.rate == rate && r.order == order && r.seed == *seed)
    }

    fn config(&self, (_, entry, _, seed): &Chosen) -> Config {
        let mut config = self.base.clone();
        config.adapter = entry.adapter.clone();
        (config.train.rate, config.train.seed) = (self.rate(entry), *seed);
        config
    }
}

/// That a folder has no chain of other settings, which a new one would overwrite.
fn check_own(place: &Path, config: &Config) -> Result<()> {
    let path = place.join("config.toml");
    if !path.exists() {
        return Ok(());
    }
    let (theirs, ours) = (Config::read(&path)?.text()?, config.text()?);
    match theirs.lines().zip(ours.lines()).find(|(theirs, ours)| theirs != ours) {
        None => Ok(()),
        Some((theirs, ours)) => Err(invalid(format!(
            "{} holds a chain with {theirs:?}, but this grid has {ours:?} there: new entries stand after \
             the others, and another rate takes another folder",
            place.display()
        ))),
    }
}

/// Runs what is missing in `folder/chains.csv`, each in a folder of its own, then writes `folder/report.html`.
///
/// # Errors
/// What a chain refuses.
pub fn run(
    grid: &Grid,
    weights: &Weights,
    data: &BTreeMap<String, Dataset>,
    folder: &Path,
    stop: &Stop,
    progress: &Progress,
    mut done: impl FnMut(&Row),
) -> Result<Vec<Row>> {
    std::fs::create_dir_all(folder).map_err(|e| file(folder, e))?;
    let path = folder.join("chains.csv");
    let mut rows: Vec<Row> = read_log(&path)?;
    keep(folder, &grid.text()?, &grid.base, &grid.entries)?;
    let mut log = Log::start(&path, &rows)?;
    let missing: Vec<_> = grid.chains().filter(|chain| !grid.is_done(chain, &rows)).collect();
    let place = |(i, _, order, seed): &Chosen| folder.join(format!("{i}-{}-{seed}", order.join("-")));
    for chain in &missing {
        check_own(&place(chain), &grid.config(chain))?;
    }
    for chosen in missing {
        let (config, place) = (grid.config(&chosen), place(&chosen));
        let (_, entry, order, seed) = chosen;
        let tasks = order.iter().map(|name| match data.get(name) {
            Some(data) => Ok((name.as_str(), data)),
            None => Err(invalid(format!("the domain {name:?} was not read"))),
        });
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let chain = sequential(&config, weights, &tasks, &place, stop, progress)?;
        let row = Row {
            name: entry.name.clone(),
            method: chain.method.clone(),
            params: chain.params,
            rate: config.train.rate,
            order: order.join(" > "),
            seed,
            final_mean: chain.final_mean(),
            backward_transfer: chain.backward_transfer(),
            forgetting: chain.forgetting(),
        };
        log.add(&row)?;
        done(&row);
        rows.push(row);
    }
    let html = html(grid, &rows)?;
    write_atomic(&folder.join("report.html"), IfExists::Replace, |out| out.write_all(html.as_bytes()))?;
    Ok(rows)
}

/// A chain's order and seed, and one of its measures.
type Values = Vec<((String, u64), f64)>;

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The entry.
    pub name: String,
    /// The method with its shapes.
    pub method: String,
    /// Trained numbers, the heads not counted.
    pub params: usize,
    /// Learning rate.
    pub rate: f64,
    /// Final mean, backward transfer and forgetting of each chain.
    pub measures: [Values; 3],
    /// p-values of the final mean and of the forgetting against the reference; `None` for the reference itself.
    pub p: Option<[f64; 2]>,
}

/// The entries' chains of the grid, tested against the reference.
pub fn lines(grid: &Grid, rows: &[Row]) -> Vec<Line> {
    let orders: Vec<String> = grid.orders().iter().map(|order| order.join(" > ")).collect();
    let line = |entry: &Entry| {
        let rate = grid.rate(entry);
        let meant = |r: &&Row| {
            let of_entry = r.name == entry.name && r.rate == rate;
            of_entry && orders.contains(&r.order) && grid.seeds.contains(&r.seed)
        };
        let rows: Vec<&Row> = rows.iter().filter(meant).collect();
        let values = |measure: fn(&Row) -> f64| -> Values {
            rows.iter().map(|r| ((r.order.clone(), r.seed), measure(r))).collect()
        };
        rows.first().map(|first| Line {
            name: first.name.clone(),
            method: first.method.clone(),
            params: first.params,
            rate,
            measures: [values(|r| r.final_mean), values(|r| r.backward_transfer), values(|r| r.forgetting)],
            p: None,
        })
    };
    let mut lines: Vec<Line> = grid.entries.iter().filter_map(line).collect();
    let reference = lines.iter().find(|l| l.name == grid.reference).map(|l| l.measures.clone());
    for line in lines.iter_mut().filter(|l| l.name != grid.reference) {
        line.p = reference.as_ref().map(|r| [0, 2].map(|i| paired_by(&line.measures[i], &r[i])));
    }
    lines
}

fn cells(lines: &[Line]) -> ([&'static str; 11], Vec<Vec<String>>) {
    let head = [
        "entry",
        "method",
        "parameters",
        "rate",
        "chains",
        "final mean",
        "95 % interval",
        "p",
        "backward transfer",
        "forgetting",
        "p",
    ];
    let row = |line: &Line| {
        let [last, transfer, forgetting] = line
            .measures
            .each_ref()
            .map(|values| -> Vec<f64> { values.iter().map(|(_, value)| 100.0 * value).collect() });
        let (low, high) = interval(&last);
        let p = |i: usize| p_value(line.p.map(|p| p[i]));
        let spread = |values: &[f64]| format!("{:.2} ± {:.2}", mean(values), deviation(values));
        vec![
            line.name.clone(),
            line.method.clone(),
            line.params.to_string(),
            format!("{:e}", line.rate),
            last.len().to_string(),
            spread(&last),
            format!("{low:.2} … {high:.2}"),
            p(0),
            spread(&transfer),
            spread(&forgetting),
            p(1),
        ]
    };
    (head, lines.iter().map(row).collect())
}

/// The result as a Markdown table.
pub fn markdown(lines: &[Line]) -> String {
    let (head, rows) = cells(lines);
    markdown_table(&head, &rows)
}

fn html(grid: &Grid, rows: &[Row]) -> Result<String> {
    let (head, cells) = cells(&lines(grid, rows));
    let note = format!(
        "In points, mean ± standard deviation over the chains; p is of a paired t-test against {}.",
        grid.reference
    );
    Ok(study("Chains of tasks compared", &note, (&head, &cells), &grid.text()?))
}
