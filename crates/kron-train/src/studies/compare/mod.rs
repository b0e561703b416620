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

use kron_adapter::io::{OutputLock, write_atomic};
use kron_candle::IfExists;
use xxhash_rust::xxh3::xxh3_64;

pub use grid::{ComparisonGrid, Point};
pub use page::{chart_file, differences, markdown};
pub use summary::{EntrySummary, summarise};
pub use trial::Trial;

use super::grid_file::{check_and_save, is_saved};
use super::jobs::{Jobs, Next, Schedule};
use super::shared_study::{self, SharedStudy, StudyState};
use crate::config::Config;
use crate::data::Dataset;
use crate::error::{Error, Result, file, invalid};
use crate::model::Weights;
use crate::output;
use crate::run::resources::restart_peak;
use crate::run::{AdapterRule, OutputFolder, run};

/// Name of the file of trials.
const ROWS: &str = "trials.csv";
/// Start of the name of a run's folder while it is in progress; the hash of its settings follows.
const RUNNING: &str = "running";
/// Name of the file of tables.
const TABLES: &str = "tables.md";
/// Name of the file of the chart.
const CHART: &str = "chart.svg";

/// Runs the trials missing in `folder/trials.csv`, then writes `folder/report.html`, `folder/tables.md` and
/// `folder/chart.svg`.
///
/// The number of runs at a time changes times and the order of
/// the rows alone. With several, processor time and peak memory belong to no single run, and are left out.
/// Several processes may do it together in one folder.
/// A run whose loss or gradient is not finite gets the worst score, and the comparison continues.
///
/// # Errors
/// Another error of a run, an adapter that does not fit the model, a folder that holds anything but this comparison, or
/// a file that cannot be written.
pub fn compare<F: FnMut(&Trial) + Send>(
    grid: &ComparisonGrid,
    weights: &Weights,
    data: &Dataset,
    folder: &Path,
    schedule: &Schedule,
    done: F,
) -> Result<Vec<Trial>> {
    let is_own = |name: &str| [ROWS, TABLES, CHART].contains(&name) || is_running(name);
    let text = grid.text()?;
    check_and_save(folder, &text, &grid.base, &grid.entries, is_own)?;
    let points = grid.points();
    for point in &points {
        AdapterRule::new(&point.adapter, weights).map_err(|e| invalid(format!("{}: {e}", point.name)))?;
    }
    let (Some(validation), Some(test)) = (&data.validation, &data.test) else {
        return Err(invalid("a comparison needs a validation and a test set"));
    };
    let worst = -((validation.len() + test.len()) as f64);
    let study = SharedStudy { folder, rows: ROWS };
    // Within a run the threads are its own.
    let (stop, shown, several) = (&schedule.stop, schedule.shown(), schedule.count() > 1);
    let run_folder = |(point, lr, seed): &(Point, f64, u64)| {
        Ok(folder.join(running_name(&grid.config(point, *lr, *seed))?))
    };
    let work = |task: &(Point, f64, u64)| {
        let (point, lr, seed) = task;
        let (config, running) = (grid.config(point, *lr, *seed), run_folder(task)?);
        restart_peak();
        let output = resumable(&running, &config)?;
        let outcome = match run(&config, weights, data, Some(&output), stop, &shown) {
            Err(Error::Diverged { .. } | Error::Exploded { .. }) => None,
            other => Some(other?),
        };
        if outcome.as_ref().is_some_and(|outcome| outcome.stopped) {
            return Ok(None);
        }
        let trial = Trial::new(&point.name, *lr, *seed, outcome.as_ref(), worst);
        // The process's numbers are those of all runs in progress.
        let shared = |trial| Trial { step_cpu_seconds: None, peak_mib: None, ..trial };
        Ok(Some(if several { shared(trial) } else { trial }))
    };
    let jobs = Jobs {
        next: |(state, _): &mut (StudyState<_, Trial>, F), running: &[_]| match stop.is_requested() {
            true => Ok(Next::Nothing),
            false => {
                study.next(state, running, run_folder, |trials, running| grid.next(&points, trials, running))
            }
        },
        work,
        done: |(state, done): &mut (StudyState<_, Trial>, F), task: &_, trial: Trial| {
            study.add(state, task, trial.clone())?;
            done(&trial);
            remove(&run_folder(task)?)
        },
    };
    jobs.run(schedule, (study.open()?, done))?;
    let _lock = shared_study::lock(folder)?;
    let trials: Vec<Trial> = study.read()?;
    if !is_saved(folder, &text)? {
        // The process with the other grid writes the pages.
        return Ok(trials);
    }
    // Remove the folders of interrupted runs that the grid no longer has.
    if grid.unfinished(&trials).is_none() {
        for name in output::contents(folder)?.iter().filter(|name| is_running(name)) {
            let running = folder.join(name);
            if OutputLock::beside_if_free(&running)?.is_some() {
                remove(&running)?;
            }
        }
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

/// Returns the name of a run's folder while it is in progress, in the folder of its comparison.
///
/// # Errors
/// A path in the settings is not Unicode.
pub fn running_name(config: &Config) -> Result<String> {
    Ok(format!("{RUNNING}-{:016x}", xxh3_64(config.text()?.as_bytes())))
}

/// Returns true for such a name; earlier versions had one without a hash.
fn is_running(name: &str) -> bool {
    let hash = name.strip_prefix(RUNNING).map(|rest| rest.strip_prefix('-').unwrap_or(rest));
    let is_hash = |hash: &str| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    hash.is_some_and(|hash| hash.is_empty() || is_hash(hash))
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
