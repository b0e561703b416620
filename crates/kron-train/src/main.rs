//! The program `kron-train`: parses arguments, runs the library, prints results.
#![deny(unsafe_code)]

mod bench;
mod cli;
mod docs;
mod generate;
mod process;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command, Inference, Settings};
use kron_adapter::gguf::is_gguf;
use kron_adapter::io::check_not_overwriting;
use kron_adapter::text::{one_line, printable};
use kron_train::data::{Dataset, Tokenizer};
use kron_train::inference::{TrainedModel, write_new};
use kron_train::model::{Files, Weights};
use kron_train::run::{OutputFolder, Stop, run};
use kron_train::studies::chains::{ChainGrid, ChainResult};
use kron_train::studies::compare::{ComparisonGrid, Trial};
use kron_train::studies::sequential::sequential;
use kron_train::studies::{chains, compare, demo};
use kron_train::{Config, Error, Progress, Result};

/// Keeps blocks from step to step, which the system's allocator gives back and takes again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of arguments that are refused.
const REFUSED: u8 = 2;
/// Exit code of a run that a signal stopped, after it saved.
const STOPPED: u8 = 130;

/// Prints a line on the standard output; a name from a file, whatever is in it, does not end the line.
macro_rules! say {
    ($($line:tt)*) => { print(&one_line(&format!($($line)*))) };
}

/// Prints lines on the standard output. A closed pipe is not an error, and a text from a file gives
/// a terminal no command.
fn print(text: &str) {
    // Results are in the output folder too, so that a full disk behind the output loses nothing.
    let _ = writeln!(std::io::stdout().lock(), "{}", printable(text.trim_end()));
}

fn main() -> ExitCode {
    process::keep_blocks();
    process::keep_one_pool();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(refused) if refused.use_stderr() => {
            let _ = write!(std::io::stderr(), "{}", printable(&refused.to_string()));
            return ExitCode::from(REFUSED);
        }
        Err(help) => help.exit(),
    };
    // On a thread of the pool: from outside, every parallel loop of a step would wake one and wait for it.
    let run = || rayon::scope(|_| run_command(command));
    match kron_core::start_threads().map_err(Error::from).and_then(|()| run()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", printable(&error.to_string()));
            if matches!(error, Error::Stopped(_)) { ExitCode::from(STOPPED) } else { ExitCode::FAILURE }
        }
    }
}

fn run_command(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Train { settings, out, resume } => {
            return train(*settings, OutputFolder { path: out, resume });
        }
        Command::Compare { grid, out, runs } => return compare_methods(&grid, &out, runs),
        Command::Sequential { grid: Some(grid), out, .. } => run_chains(&grid, &out),
        Command::Sequential { settings, domains, out, .. } => run_chain(*settings, &domains, &out),
        Command::Eval(inference) => evaluate(&inference),
        Command::Predict(inference) => predict(&inference),
        Command::Generate(options) => generate::generate(&options),
        Command::Bench(options) => bench::run(*options),
        Command::Demo { seed } => run_demo(seed),
        Command::Man { dir } => docs::man(&dir, Cli::command()),
        Command::Completions { shell } => docs::completions(shell, Cli::command()),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn train(settings: Settings, output: OutputFolder) -> Result<ExitCode> {
    // A resumed run leaves its settings file as it is.
    if let Some(file) = settings.file().filter(|_| !output.resume) {
        check_not_overwriting(file, &output.path)?;
    }
    let config = settings.config()?;
    print(&config.text()?);
    let (weights, tokenizer) = load(&config)?;
    let data = Dataset::read(&config, &tokenizer)?;
    let outcome = run(&config, &weights, &data, Some(&output), &Stop::on_signals()?, &Progress::Shown)?;
    if outcome.stopped {
        say!("stopped and saved: pass --resume to continue");
        return Ok(ExitCode::from(STOPPED));
    }
    say!(
        "{}, {} trained parameters without the head",
        outcome.learner.description(),
        outcome.learner.body_params()
    );
    for (name, score) in [("validation", outcome.validation), ("test", outcome.test)] {
        if let Some(score) = score {
            say!("{name}: {score}");
        }
    }
    say!("report: {}", output.path.join("report.html").display());
    if outcome.learner.adapters().is_some() {
        print_next(&config, &output.path);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints where the adapter is, and what can be done with it.
fn print_next(config: &Config, folder: &Path) {
    let adapter = folder.join("adapter.safetensors");
    say!("adapter: {}", adapter.display());
    let [settings, lora, merged] = ["config.toml", "lora", "merged"].map(|name| quoted(&folder.join(name)));
    let [adapter, model] = [&adapter, &config.model].map(|path| quoted(path));
    say!("next:");
    say!("  kron-train eval {model} --config {settings} --adapter {adapter} --data FILE");
    say!("  kron inspect {adapter}");
    say!("  kron convert {adapter} {lora} --to lora");
    if config.model.is_dir() {
        say!("  kron merge {model} {adapter} {merged}");
    }
    if is_gguf(&config.model) {
        let [lora, merged] = ["lora.gguf", "merged.gguf"].map(|name| quoted(&folder.join(name)));
        say!("  kron convert {adapter} {lora} --to gguf-lora --base {model}");
        say!("  kron merge {model} {adapter} {merged} --dtype f16");
    }
}

/// Quotes a path for a shell where it needs quotes.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A path has no zero byte, the only text that a shell cannot quote.
    shlex::try_quote(&text).unwrap_or(Cow::Borrowed(&text)).into_owned()
}

fn compare_methods(grid: &Path, out: &Path, runs: Option<u64>) -> Result<ExitCode> {
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
    let trials = compare::compare(&grid, &weights, &data, out, &stop, &Progress::Shown, print_trial)?;
    let summaries = compare::summarise(&grid, &trials);
    print(&compare::markdown(&summaries));
    print(&format!("\n{}", compare::differences(&summaries)));
    if let Some(part) = grid.unfinished(&trials) {
        say!("{part}: repeat the command to continue with the others");
    }
    // `--runs` also ends a study early, as asked.
    Ok(if stop.is_requested() && runs != Some(done) { ExitCode::from(STOPPED) } else { ExitCode::SUCCESS })
}

fn run_chain(settings: Settings, domains: &[String], out: &Path) -> Result<()> {
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

fn run_chains(grid: &Path, out: &Path) -> Result<()> {
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
    let stop = Stop::on_signals()?;
    let results = chains::run(&grid, &weights, &data, out, &stop, &Progress::Shown, print_result)?;
    print(&chains::markdown(&chains::summarise(&grid, &results)));
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

fn evaluate(inference: &Inference) -> Result<()> {
    let model = trained_model(inference)?;
    let result = || {
        let result = model.evaluate(&inference.data)?;
        let data = inference.data.display();
        note(&format!("{data}: {}, {} examples", result.score, result.examples));
        result.json()
    };
    put(inference.out.as_deref(), std::iter::once_with(result))
}

fn predict(inference: &Inference) -> Result<()> {
    let model = trained_model(inference)?;
    put(inference.out.as_deref(), model.predict(&inference.data)?)
}

fn trained_model(inference: &Inference) -> Result<TrainedModel> {
    let config = inference.config()?;
    let (weights, tokenizer) = load(&config)?;
    let (adapter, head) = (inference.adapter.as_deref(), inference.head.as_deref());
    let model = TrainedModel::new(&config, &weights, tokenizer, adapter, head)?;
    model.notes().iter().for_each(|text| note(text));
    Ok(model)
}

/// Prints a line on the standard error, beside a result on the standard output.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", one_line(text));
}

/// Writes a result to a new file, or prints it. A closed pipe is not an error.
fn put(out: Option<&Path>, parts: impl Iterator<Item = Result<String>>) -> Result<()> {
    let stop = Stop::on_signals()?;
    let stopped = || Error::Stopped("a signal came before the last result; no file is written".into());
    let parts = parts.map(|part| if stop.is_requested() { Err(stopped()) } else { part });
    let Some(path) = out else {
        let mut stdout = std::io::stdout().lock();
        for part in parts {
            match stdout.write_all(part?.as_bytes()).and_then(|()| stdout.flush()) {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written
                    .map_err(|e| Error::Invalid(format!("the standard output cannot be written: {e}")))?,
            }
        }
        return Ok(());
    };
    write_new(path, parts)
}

fn run_demo(seed: u64) -> Result<()> {
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

/// Reads the model and its tokenizer, and checks that they belong together.
fn load(config: &Config) -> Result<(Weights, Tokenizer)> {
    let files = Files::find(&config.model)?;
    let tokenizer: &PathBuf = config.tokenizer.as_ref().unwrap_or(&files.tokenizer);
    let (weights, tokenizer) = (Weights::read_for(&files, config.compute)?, Tokenizer::read(tokenizer)?);
    tokenizer.check_fits(weights.vocabulary())?;
    Ok((weights, tokenizer))
}
