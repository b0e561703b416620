//! `kron-train compare`, `sequential` and `demo`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use kron_adapter::io::check_not_overwriting;

use super::STOPPED;
use super::cli::Settings;
use super::load::load;
use super::print::{print, say};
use crate::config::Config;
use crate::data::{Dataset, Tokenizer};
use crate::error::Result;
use crate::run::{Progress, Stop};
use crate::studies::chains::{ChainGrid, ChainResult};
use crate::studies::compare::{ComparisonGrid, Trial};
use crate::studies::sequential::sequential;
use crate::studies::{Schedule, chains, compare, demo};

/// Runs a grid of methods.
pub fn compare_methods(grid: &Path, out: &Path, runs: Option<u64>, jobs: u64) -> Result<ExitCode> {
    check_not_overwriting(grid, out)?;
    let grid = ComparisonGrid::read(grid)?;
    print(&grid.text()?);
    let (weights, tokenizer) = load(&grid.base)?;
    let data = Dataset::read(&grid.base, &tokenizer)?;
    let stop = Stop::on_signals()?;
    let mut done = 0;
    let print_trial = |trial: &Trial| {
        done += 1;
        if runs == Some(done) {
            stop.request();
        }
        say!(
            "{} learning rate {:e} seed {}: validation {:.4}, test {:.4}, {:.0} ms a step",
            trial.name,
            trial.lr,
            trial.seed,
            trial.validation,
            trial.test,
            1000.0 * trial.step_seconds
        );
    };
    let schedule = schedule(jobs, stop.clone());
    let trials = compare::compare(&grid, &weights, &data, out, &schedule, print_trial)?;
    let summaries = compare::summarise(&grid, &trials);
    print(&compare::markdown(&summaries));
    print(&format!("\n{}", compare::differences(&summaries)));
    if let Some(part) = grid.unfinished(&trials) {
        say!("{part}: repeat the command to continue with the others");
    }
    // `--runs` also ends a study early, as asked.
    Ok(if stop.is_requested() && runs.is_none_or(|runs| done < runs) {
        ExitCode::from(STOPPED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Trains on one domain after another.
pub fn run_chain(settings: Settings, domains: &[String], out: &Path) -> Result<()> {
    settings.file().map_or(Ok(()), |file| check_not_overwriting(file, out))?;
    let config = settings.config()?;
    print(&config.text()?);
    let (weights, tokenizer) = load(&config)?;
    let data = read_domains(&config, &tokenizer, domains)?;
    let tasks: Vec<(&str, &Dataset)> = domains.iter().map(|name| (name.as_str(), &data[name])).collect();
    let chain = sequential(&config, &weights, &tasks, out, &Stop::on_signals()?, &Progress::Shown)?;
    say!(
        "final mean {:.1} %, backward transfer {:+.1} points, forgetting {:.1} points",
        100.0 * chain.final_mean(),
        100.0 * chain.backward_transfer(),
        100.0 * chain.forgetting()
    );
    Ok(())
}

/// Runs a grid of chains.
pub fn run_chains(grid: &Path, out: &Path, jobs: u64) -> Result<()> {
    check_not_overwriting(grid, out)?;
    let grid = ChainGrid::read(grid)?;
    print(&grid.text()?);
    let (weights, tokenizer) = load(&grid.base)?;
    let data = read_domains(&grid.base, &tokenizer, &grid.domains())?;
    let print_result = |r: &ChainResult| {
        say!(
            "{} {} seed {}: final mean {:.4}, backward transfer {:+.4}, forgetting {:.4}",
            r.name,
            r.order,
            r.seed,
            r.final_mean,
            r.backward_transfer,
            r.forgetting
        );
    };
    let schedule = schedule(jobs, Stop::on_signals()?);
    let results = chains::run(&grid, &weights, &data, out, &schedule, print_result)?;
    print(&chains::markdown(&chains::summarise(&grid, &results)));
    Ok(())
}

fn schedule(jobs: u64, stop: Stop) -> Schedule {
    let schedule = Schedule { jobs: jobs as usize, stop, progress: Progress::Shown };
    if schedule.count() < schedule.jobs {
        say!("--jobs {jobs}: {} at a time, because each takes a thread", schedule.count());
    }
    schedule
}

fn read_domains(
    config: &Config,
    tokenizer: &Tokenizer,
    domains: &[String],
) -> Result<BTreeMap<String, Dataset>> {
    let read = |domain: &String| {
        let mut config = config.clone();
        config.data.domain = Some(domain.clone());
        Ok((domain.clone(), Dataset::read(&config, tokenizer)?))
    };
    domains.iter().map(read).collect()
}

/// Recovers a planted update.
pub fn run_demo(seed: u64) -> Result<()> {
    let print_step = |method: &str, step: u64, loss: f64| {
        if step.is_multiple_of(50) {
            say!("{method} step {step}: loss {loss:.5}");
        }
    };
    for result in demo::demo(seed, print_step)? {
        say!(
            "{}: {} parameters, loss {:.5} → {:.5}, ‖ΔW − planted‖ / ‖planted‖ = {:.3}",
            result.method,
            result.params,
            result.loss.0,
            result.loss.1,
            result.distance
        );
    }
    Ok(())
}
