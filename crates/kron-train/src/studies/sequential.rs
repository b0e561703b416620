//! `kron-train sequential`: one adapter learns a chain of tasks, and its accuracy on earlier tasks is measured.
//!
//! Every task of classification has its own head, frozen when the task ends; the adapter is trained further.
//! R\[i\]\[j\] is the accuracy on task j after task i.

use std::path::Path;

use candle_core::Tensor;
use candle_nn::Linear;
use kron_adapter::algebra::Delta;
use kron_adapter::io::write_atomic;
use kron_adapter::{Adapter, Layer};
use kron_candle::IfExists;
use kron_report::{Page, Table};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Method, Task};
use crate::data::Dataset;
use crate::error::{Error, Result, invalid};
use crate::model::Weights;
use crate::output;
use crate::report;
use crate::run::{Learner, Log, Progress, Stop, read_log, run_from};

/// Names of a chain's files.
const FILES: [&str; 3] = [CONFIG, MATRIX, "report.html"];
const CONFIG: &str = "config.toml";
const MATRIX: &str = "matrix.csv";

/// One cell of the accuracy matrix: a row of `matrix.csv`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Cell {
    /// Index of the task just learned, from 0.
    pub after: usize,
    /// Name of the task just learned.
    pub learned: String,
    /// Name of the evaluated task.
    pub on: String,
    /// Accuracy on the evaluated task's test set.
    pub accuracy: f64,
    /// Cosine between ΔW after the evaluated task and the change of ΔW since; `None` on the diagonal.
    pub cosine: Option<f64>,
}

/// Result of a chain of tasks.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters, without the heads'.
    pub params: usize,
    /// Names of the tasks, in order.
    pub tasks: Vec<String>,
    /// Cells of R, row by row; row i has i + 1 cells.
    pub cells: Vec<Cell>,
}

impl Chain {
    fn at(&self, after: usize, on: usize) -> f64 {
        let cell = self.cells.iter().find(|c| c.after == after && c.on == self.tasks[on]);
        cell.map_or(f64::NAN, |c| c.accuracy)
    }

    fn cosine(&self, after: usize, on: usize) -> Option<f64> {
        self.cells.iter().find(|c| c.after == after && c.on == self.tasks[on])?.cosine
    }

    /// Returns the mean accuracy on all tasks after the last.
    pub fn final_mean(&self) -> f64 {
        let last = self.tasks.len() - 1;
        (0..=last).map(|j| self.at(last, j)).sum::<f64>() / self.tasks.len() as f64
    }

    /// Returns the mean of R\[last\]\[j\] − R\[j\]\[j\] over the tasks before the last (Lopez-Paz and Ranzato 2017).
    pub fn backward_transfer(&self) -> f64 {
        let last = self.tasks.len() - 1;
        (0..last).map(|j| self.at(last, j) - self.at(j, j)).sum::<f64>() / last as f64
    }

    /// Returns the mean of max_i R\[i\]\[j\] − R\[last\]\[j\] over the tasks before the last (Chaudhry et al. 2018).
    pub fn forgetting(&self) -> f64 {
        let last = self.tasks.len() - 1;
        let best = |j| (j..=last).map(|i| self.at(i, j)).fold(f64::MIN, f64::max);
        (0..last).map(|j| best(j) - self.at(last, j)).sum::<f64>() / last as f64
    }
}

/// Trains on each task in turn, and evaluates all tasks learned so far after each; a chain that the folder holds
/// whole is not repeated.
///
/// # Errors
/// Fewer than two tasks, a task without answers to count, a method without an adapter, a task without a test set, a folder that holds anything but an
/// earlier run of this chain, a stop, or an error of a run.
pub fn sequential(
    config: &Config,
    weights: &Weights,
    tasks: &[(&str, &Dataset)],
    folder: &Path,
    stop: &Stop,
    progress: &Progress,
) -> Result<Chain> {
    if tasks.len() < 2 {
        return Err(invalid(format!(
            "{} task leaves nothing to forget: a chain has at least two",
            tasks.len()
        )));
    }
    if !matches!(config.task, Task::Classify | Task::Choice) {
        return Err(invalid(format!(
            "a chain counts right answers, so its task is classify or choice, but it is {:?}",
            config.task
        )));
    }
    if !matches!(config.adapter.method, Method::Lora | Method::Kron | Method::Krona | Method::Lokr) {
        return Err(invalid(format!(
            "a chain of tasks hands an adapter on, but method {:?} has none",
            config.adapter.method
        )));
    }
    let _lock = output::claim(folder, config)?;
    let earlier = check_folder(folder, config, &tasks.iter().map(|(name, _)| *name).collect::<Vec<_>>())?;
    let settings = config.text()?;
    write_atomic(&folder.join(CONFIG), IfExists::Replace, |out| out.write_all(settings.as_bytes()))?;
    let chain = match is_finished(&earlier, tasks) {
        true => stored(config, weights, tasks, earlier)?,
        false => learn(config, weights, tasks, &folder.join(MATRIX), earlier.len(), stop, progress)?,
    };
    let html = html(&chain)?;
    write_atomic(&folder.join("report.html"), IfExists::Replace, |out| out.write_all(html.as_bytes()))?;
    Ok(chain)
}

/// Returns `true` if the cells are all those of a chain, row by row.
fn is_finished(cells: &[Cell], tasks: &[(&str, &Dataset)]) -> bool {
    let mut all = (0..tasks.len()).flat_map(|after| (0..=after).map(move |on| (after, on)));
    let mut in_place =
        |cell: &Cell| all.next().is_some_and(|(i, j)| (i, tasks[j].0) == (cell.after, &*cell.on));
    cells.iter().all(&mut in_place) && all.next().is_none()
}

/// Makes the result of a chain from its cells; the model is built for the shapes and the number of parameters alone.
fn stored(config: &Config, weights: &Weights, tasks: &[(&str, &Dataset)], cells: Vec<Cell>) -> Result<Chain> {
    let learner = Learner::new(config, weights, tasks[0].1)?;
    let (method, params) = (learner.description().to_owned(), learner.body_params());
    Ok(Chain { method, params, tasks: names(tasks), cells })
}

fn names(tasks: &[(&str, &Dataset)]) -> Vec<String> {
    tasks.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// Trains on each task in turn; the file of cells keeps `earlier` rows of a run that was cut off until there are as
/// many new ones.
fn learn(
    config: &Config,
    weights: &Weights,
    tasks: &[(&str, &Dataset)],
    matrix: &Path,
    earlier: usize,
    stop: &Stop,
    progress: &Progress,
) -> Result<Chain> {
    let mut chain = Chain { method: String::new(), params: 0, tasks: names(tasks), cells: Vec::new() };
    let (mut adapter, mut heads, mut snapshots): (Option<Adapter>, Vec<Option<Linear>>, Vec<Adapter>) =
        Default::default();
    for (after, (learned, data)) in tasks.iter().enumerate() {
        let learner = run_from(config, weights, data, adapter.take(), stop, progress)?;
        if stop.is_requested() {
            return Err(Error::Stopped(
                "stopped before the chain's end: a chain has no checkpoints, so it starts again from its first task"
                    .into(),
            ));
        }
        (chain.method, chain.params) = (learner.description().to_owned(), learner.body_params());
        heads.push(learner.head().map(frozen).transpose()?);
        let now = learner.adapters().map(|a| a.to_adapter()).transpose()?;
        snapshots.extend(now.clone());
        for (on, (name, data)) in tasks[..=after].iter().enumerate() {
            let test = data.test.as_ref().ok_or_else(|| invalid(format!("task {name} has no test set")))?;
            let score = learner.score_with(heads[on].as_ref(), test, 2 * config.train.batch)?;
            let cosine = match (on < after, snapshots.get(on), &now) {
                (true, Some(then), Some(now)) => Some(cosine(then, now)?),
                _ => None,
            };
            let accuracy = score.accuracy.unwrap_or(f64::NAN);
            let cell = Cell { after, learned: (*learned).into(), on: (*name).into(), accuracy, cosine };
            chain.cells.push(cell);
        }
        if chain.cells.len() >= earlier {
            Log::start(matrix, &chain.cells)?;
        }
        adapter = now;
    }
    Ok(chain)
}

/// Returns the cells that a folder holds; fails if it holds anything but the files of this chain.
///
/// # Errors
/// Another file, a chain with other settings or other tasks, or an unreadable file.
pub(super) fn check_folder(folder: &Path, config: &Config, tasks: &[&str]) -> Result<Vec<Cell>> {
    if folder.symlink_metadata().is_err() {
        return Ok(Vec::new());
    }
    let names = output::contents(folder)?;
    let foreign = names.iter().any(|name| !FILES.contains(&name.as_str()));
    if foreign || (!names.is_empty() && !names.iter().any(|name| name == CONFIG)) {
        return Err(output::taken(folder, &names, "a chain takes an empty folder, or its own"));
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let other = |theirs: &str, ours: &str| {
        invalid(format!(
            "{} holds a chain with {theirs}, but this one has {ours} instead: append new entries of a grid after \
             the others, and use another folder for other settings",
            folder.display()
        ))
    };
    let (theirs, ours) = (Config::read(&folder.join(CONFIG))?.text()?, config.text()?);
    if let Some((theirs, ours)) = theirs.lines().zip(ours.lines()).find(|(theirs, ours)| theirs != ours) {
        return Err(other(&format!("{theirs:?}"), &format!("{ours:?}")));
    }
    let cells: Vec<Cell> = read_log(&folder.join(MATRIX))?;
    match cells.iter().find(|cell| tasks.get(cell.after) != Some(&cell.learned.as_str())) {
        Some(cell) => {
            let ours = tasks.get(cell.after).map_or("no such task".into(), |task| format!("{task:?}"));
            Err(other(&format!("task {:?} in place {}", cell.learned, cell.after), &ours))
        }
        None => Ok(cells),
    }
}

/// Copies the head, so that later training does not change it.
fn frozen(head: &Linear) -> Result<Linear> {
    let copy = |tensor: &Tensor| tensor.copy().map(|t| t.detach());
    Ok(Linear::new(copy(head.weight())?, head.bias().map(copy).transpose()?))
}

/// Returns the cosine between the earlier ΔW and its change since, over all layers, from the factors alone.
///
/// With D the earlier ΔW and N the current one: ⟨D, N − D⟩ / (‖D‖·‖N − D‖), ‖N − D‖² = ‖N‖² − 2⟨N, D⟩ + ‖D‖².
fn cosine(then: &Adapter, now: &Adapter) -> Result<f64> {
    let (mut both, mut old, mut new) = (0.0, 0.0, 0.0);
    let [then, now] = [then, now].map(|adapter| adapter.layers().chunk_by(|a, b| a.module() == b.module()));
    for (then, now) in then.zip(now) {
        both += inner(then, now)?;
        old += square(then)?;
        new += square(now)?;
    }
    let change = (new - 2.0 * both + old).max(0.0);
    Ok((both - old) / (old * change).sqrt())
}

/// Returns ⟨ΔW, ΔW'⟩ of two sums of terms.
fn inner(one: &[Layer], other: &[Layer]) -> Result<f64> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| [one, other].map(Delta::new)));
    pairs.map(|[one, other]| Ok(one.inner(&other)?)).sum()
}

/// Returns ‖ΔW‖² of a sum of terms.
fn square(terms: &[Layer]) -> Result<f64> {
    match terms {
        [one] => Ok(Delta::new(one).norm() * Delta::new(one).norm()),
        all => inner(all, all),
    }
}

fn html(chain: &Chain) -> Result<String> {
    let table = |from: usize, cell: &dyn Fn(usize, usize) -> String| {
        let head = ["after"].into_iter().chain(chain.tasks.iter().map(String::as_str));
        let row = |i: usize| {
            let cells = (0..chain.tasks.len()).map(move |j| cell(i, j));
            [chain.tasks[i].clone()].into_iter().chain(cells)
        };
        Table::new(head, (from..chain.tasks.len()).map(row))
    };
    let accuracy = |i, j| if j <= i { format!("{:.1} %", 100.0 * chain.at(i, j)) } else { String::new() };
    let cosine = |i, j| chain.cosine(i, j).map_or(String::new(), |cosine| format!("{cosine:+.3}"));
    let summary = format!(
        "Final mean {:.1} %, backward transfer {:+.1} points, forgetting {:.1} points.",
        100.0 * chain.final_mean(),
        100.0 * chain.backward_transfer(),
        100.0 * chain.forgetting()
    );
    let cosines = "Cosine between ΔW after the task above and the change of ΔW since";
    let page = Page::new("Chain of tasks").summary(summary).table(table(0, &accuracy).caption("Accuracy"));
    report::html(&page.table(table(1, &cosine).caption(cosines)))
}

#[cfg(test)]
mod tests {
    use kron_adapter::Layer;
    use kron_core::{LayerDims, Split};

    use kron_adapter::{ScaleRule, Scaling};
    use kron_core::{KronOp, KronShape, Theta, reference};

    use super::*;

    #[test]
    fn the_measures_are_their_definitions() {
        let tasks: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        let values = [vec![0.9], vec![0.8, 0.7], vec![0.6, 0.75, 1.0]];
        let cells = values.iter().enumerate().flat_map(|(after, row)| {
            let tasks = &tasks;
            row.iter().zip(tasks).map(move |(accuracy, on)| Cell {
                after,
                learned: tasks[after].clone(),
                on: on.clone(),
                accuracy: *accuracy,
                cosine: None,
            })
        });
        let (method, params) = (String::new(), 0);
        let chain = Chain { method, params, cells: cells.collect(), tasks: tasks.clone() };
        assert!((chain.final_mean() - 2.35 / 3.0).abs() < 1e-12);
        assert!((chain.backward_transfer() - (-0.3 + 0.05) / 2.0).abs() < 1e-12);
        assert!((chain.forgetting() - 0.3 / 2.0).abs() < 1e-12);
    }

    /// Compares the closed form with materialised matrices.
    #[test]
    fn the_cosine_is_that_of_dense_updates() {
        let shapes = [
            KronShape::kron(LayerDims { d_out: 12, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 2),
            KronShape::lora(LayerDims { d_out: 7, d_in: 9 }, 3),
        ]
        .map(|s| s.expect("a shape"));
        let scaling = Scaling::new(6.0, 4, ScaleRule::AlphaOverR).expect("a scale");
        let adapter = |seed: u64| {
            let layer = |(i, shape): (usize, &KronShape)| {
                Layer::new(format!("m{i}"), scaling, Theta::random(*shape, seed + i as u64)).expect("a layer")
            };
            let further = |term: usize| {
                let theta = Theta::random(shapes[0], seed + 40 + term as u64);
                Layer::new("m0", scaling, theta).expect("a layer").with_term(term)
            };
            // The first module has a sum.
            let layers = [layer((0, &shapes[0])), further(1), further(2), layer((1, &shapes[1]))];
            Adapter::new(layers.into()).expect("an adapter")
        };
        let (then, now) = (adapter(1), adapter(9));
        let dense = |adapter: &Adapter| -> Vec<f64> {
            let whole = |l: &Layer| {
                reference::delta_weight(&KronOp::new(*l.theta().shape(), l.scaling().scale()), l.theta())
            };
            let sum = |module: &str| {
                let terms = adapter.terms(module).iter().map(whole);
                terms.reduce(|sum, term| sum + term).expect("a term").into_iter().collect::<Vec<f64>>()
            };
            [sum("m0"), sum("m1")].concat()
        };
        let (then_w, now_w) = (dense(&then), dense(&now));
        let change: Vec<f64> = now_w.iter().zip(&then_w).map(|(now, then)| now - then).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let want = dot(&then_w, &change) / (dot(&then_w, &then_w) * dot(&change, &change)).sqrt();
        let got = cosine(&then, &now).expect("a cosine");
        assert!((got - want).abs() < 1e-6 && want.abs() > 0.1, "{got}, not {want}");
    }
}
