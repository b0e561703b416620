//! `kron-train compare`: methods × learning rates × seeds on one task, and methods × sizes for curves.
//!
//! Every run adds one row to a CSV file when it ends, and is not repeated if its row exists; the run in progress has a
//! folder with its checkpoint, from which it continues. Each method's learning rate is the one with the best mean on the
//! validation set; the result takes test scores of that rate alone.

mod grid;
mod page;
mod summary;
mod trial;

use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;

pub use grid::{ComparisonGrid, Point};
pub use page::{chart_file, differences, markdown};
pub use summary::{EntrySummary, summarise};
pub use trial::Trial;

use super::grid_file::check_and_save;
use crate::config::Config;
use crate::data::Dataset;
use crate::error::{Error, Result, file, invalid};
use crate::model::Weights;
use crate::run::resources::restart_peak;
use crate::run::{AdapterRule, Log, OutputFolder, Progress, Stop, read_log, run};

/// Name of the file of trials.
const ROWS: &str = "trials.csv";
/// Name of the folder of the run in progress.
const RUNNING: &str = "running";
/// Name of the file of tables.
const TABLES: &str = "tables.md";
/// Name of the file of the chart.
const CHART: &str = "chart.svg";

/// Runs the trials missing in `folder/trials.csv`, then writes `folder/report.html`, `folder/tables.md` and
/// `folder/chart.svg`.
///
/// A run whose loss or gradient is not finite gets the worst score, and the comparison continues.
///
/// # Errors
/// Another error of a run, an adapter that does not fit the model, a folder that holds anything but this comparison, or
/// a file that cannot be written.
pub fn compare(
    grid: &ComparisonGrid,
    weights: &Weights,
    data: &Dataset,
    folder: &Path,
    stop: &Stop,
    progress: &Progress,
    mut done: impl FnMut(&Trial),
) -> Result<Vec<Trial>> {
    let (path, running) = (folder.join(ROWS), folder.join(RUNNING));
    let is_own = |name: &str| [ROWS, RUNNING, TABLES, CHART].contains(&name);
    let _lock = check_and_save(folder, &grid.text()?, &grid.base, &grid.entries, is_own)?;
    let points = grid.points();
    for point in &points {
        AdapterRule::new(&point.adapter, weights).map_err(|e| invalid(format!("{}: {e}", point.name)))?;
    }
    let (Some(validation), Some(test)) = (&data.validation, &data.test) else {
        return Err(invalid("a comparison needs a validation and a test set"));
    };
    let worst = -((validation.len() + test.len()) as f64);
    let mut trials: Vec<Trial> = read_log(&path)?;
    let mut log = Log::start(&path, &trials)?;
    while !stop.is_requested()
        && let Some((point, lr, seed)) = grid.next(&points, &trials)
    {
        let config = grid.config(&point, lr, seed);
        restart_peak();
        let output = resumable(&running, &config)?;
        let outcome = match run(&config, weights, data, Some(&output), stop, progress) {
            Err(Error::Diverged { .. } | Error::Exploded { .. }) => None,
            other => Some(other?),
        };
        if outcome.as_ref().is_some_and(|outcome| outcome.stopped) {
            break;
        }
        let trial = Trial::new(&point.name, lr, seed, outcome.as_ref(), worst);
        log.add(&trial)?;
        done(&trial);
        trials.push(trial);
        remove(&running)?;
    }
    for (name, text) in [
        ("report.html", page::html(grid, &trials)?),
        (TABLES, page::tables(grid, &trials)),
        (CHART, chart_file(&summarise(grid, &trials))?),
    ] {
        write_atomic(&folder.join(name), IfExists::Replace, |out| out.write_all(text.as_bytes()))?;
    }
    Ok(trials)
}

/// Returns the folder of a run: with its checkpoint if the run was cut off, else empty.
fn resumable(running: &Path, config: &Config) -> Result<OutputFolder> {
    let begun = Config::read(&running.join("config.toml")).and_then(|theirs| theirs.text());
    let resume = match begun {
        Ok(theirs) => theirs == config.text()? && OutputFolder::has_checkpoint(running),
        Err(_) => false,
    };
    if !resume {
        remove(running)?;
    }
    Ok(OutputFolder { path: running.into(), resume })
}

fn remove(running: &Path) -> Result<()> {
    match std::fs::remove_dir_all(running) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(file(running, e)),
        _ => Ok(()),
    }
}
