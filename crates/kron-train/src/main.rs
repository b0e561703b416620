//! The program `kron-train`: arguments in, the library's work, words out.
#![forbid(unsafe_code)]

mod cli;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command, Settings};
use kron_train::compare::{Grid, Trial, compare, lines, markdown};
use kron_train::data::Dataset;
use kron_train::model::{Files, Weights};
use kron_train::run::{Place, Stop, run};
use kron_train::sequential::sequential;
use kron_train::text::Tokenizer;
use kron_train::{Config, Progress, Result, chains, demo};

/// A step allocates and frees the same hundred tensors; handing their pages back each time costs a sixth of it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Train { settings, out, resume } => train(*settings, Place { folder: out, resume }),
        Command::Compare { grid, out, runs } => compare_methods(&grid, &out, runs.map(u64::from)),
        Command::Sequential { grid: Some(grid), out, .. } => chains(&grid, &out),
        Command::Sequential { settings, domains, out, .. } => chain(*settings, &domains, &out),
        Command::Demo { seed } => planted(seed),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(settings: Settings, place: Place) -> Result<()> {
    let config = settings.config()?;
    print!("{}", config.text()?);
    let (weights, tokenizer) = load(&config)?;
    let data = Dataset::read(&config, &tokenizer)?;
    let outcome = run(&config, &weights, &data, Some(&place), &Stop::on_signals()?, &Progress::Shown)?;
    if outcome.stopped {
        println!("stopped and saved: pass --resume to go on");
        return Ok(());
    }
    println!(
        "{}, {} trained parameters besides a head",
        outcome.learner.description(),
        outcome.learner.body_params()
    );
    for (name, score) in [("validation", outcome.validation), ("test", outcome.test)] {
        if let Some(score) = score {
            println!("{name}: {score}");
        }
    }
    println!("report: {}", place.folder.join("report.html").display());
    Ok(())
}

fn compare_methods(grid: &Path, out: &Path, runs: Option<u64>) -> Result<()> {
    let grid = Grid::read(grid)?;
    print!("{}", grid.text()?);
    let (weights, tokenizer) = load(&grid.base)?;
    let data = Dataset::read(&grid.base, &tokenizer)?;
    let stop = Stop::on_signals()?;
    let mut done = 0;
    let say = |trial: &Trial| {
        done += 1;
        if runs == Some(done) {
            stop.ask();
        }
        println!(
            "{} rate {:e} seed {}: validation {:.4}, test {:.4}, {:.0} ms a step",
            trial.name,
            trial.rate,
            trial.seed,
            trial.validation,
            trial.test,
            1000.0 * trial.step_seconds
        );
    };
    let trials = compare(&grid, &weights, &data, out, &stop, &Progress::Shown, say)?;
    print!("{}", markdown(&lines(&grid, &trials)));
    if let Some(done) = grid.unfinished(&trials) {
        println!("{done}: the same command goes on with the others");
    }
    Ok(())
}

fn chain(settings: Settings, domains: &[String], out: &Path) -> Result<()> {
    let config = settings.config()?;
    print!("{}", config.text()?);
    let (weights, tokenizer) = load(&config)?;
    let data = read_domains(&config, &tokenizer, domains)?;
    let tasks: Vec<(&str, &Dataset)> = domains.iter().map(|name| (name.as_str(), &data[name])).collect();
    let chain = sequential(&config, &weights, &tasks, out, &Stop::on_signals()?, &Progress::Shown)?;
    println!(
        "final mean {:.1} %, backward transfer {:+.1} points, forgetting {:.1} points",
        100.0 * chain.final_mean(),
        100.0 * chain.backward_transfer(),
        100.0 * chain.forgetting()
    );
    Ok(())
}

fn chains(grid: &Path, out: &Path) -> Result<()> {
    let grid = chains::Grid::read(grid)?;
    print!("{}", grid.text()?);
    let (weights, tokenizer) = load(&grid.base)?;
    let data = read_domains(&grid.base, &tokenizer, &grid.domains())?;
    let say = |row: &chains::Row| {
        println!(
            "{} {} seed {}: final mean {:.4}, backward transfer {:+.4}, forgetting {:.4}",
            row.name, row.order, row.seed, row.final_mean, row.backward_transfer, row.forgetting
        );
    };
    let rows = chains::run(&grid, &weights, &data, out, &Stop::on_signals()?, &Progress::Shown, say)?;
    print!("{}", chains::markdown(&chains::lines(&grid, &rows)));
    Ok(())
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

fn planted(seed: u64) -> Result<()> {
    let say = |method: &str, step: u64, loss: f64| {
        if step.is_multiple_of(50) {
            println!("{method} step {step}: loss {loss:.5}");
        }
    };
    for result in demo::demo(seed, say)? {
        println!(
            "{}: {} parameters, loss {:.5} → {:.5}, ‖ΔW − planted‖ / ‖planted‖ = {:.3}",
            result.method, result.params, result.loss.0, result.loss.1, result.distance
        );
    }
    Ok(())
}

/// The model and its tokenizer, which have to fit each other.
fn load(config: &Config) -> Result<(Weights, Tokenizer)> {
    let files = Files::find(&config.model)?;
    let tokenizer: &PathBuf = config.tokenizer.as_ref().unwrap_or(&files.tokenizer);
    let (weights, tokenizer) = (Weights::read_for(&files, config.compute)?, Tokenizer::read(tokenizer)?);
    tokenizer.check_fits(weights.vocabulary())?;
    Ok((weights, tokenizer))
}
