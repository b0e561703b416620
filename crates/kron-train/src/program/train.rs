//! `kron-train train`.

use std::borrow::Cow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use kron_adapter::gguf::is_gguf;
use kron_adapter::io::check_not_overwriting;

use super::STOPPED;
use super::cli::Settings;
use super::load::load_over;
use super::print::{note, print, say};
use crate::config::{Config, Task};
use crate::data::Dataset;
use crate::error::Result;
use crate::ranks::{self, World};
use crate::run::{OutputFolder, Progress, Stop, run_over};

/// Trains one adapter, and prints what came out.
///
/// # Errors
/// As [`run_over`].
pub fn train(settings: Settings, output: OutputFolder, timeout: Duration) -> Result<ExitCode> {
    let world = ranks::start(timeout, |sentence| note(&format!("error: {sentence}")))?;
    let done = train_on(&world, settings, output);
    let Err(error) = &done else { return done };
    match (world.count(), world.has_failed()) {
        (1, _) => return done,
        // Ranks that end wait here for this one, which prints.
        (_, true) if world.is_first() => note(&format!("error: {error}")),
        (_, true) => {}
        (count, false) => {
            note(&format!("error: rank {} of {count}: {error}", world.rank()));
            // The others wait for this rank.
            world.abort();
        }
    }
    Ok(ExitCode::FAILURE)
}

fn train_on(world: &World, settings: Settings, output: OutputFolder) -> Result<ExitCode> {
    let read = || {
        // A resumed run leaves its settings file as it is.
        if let Some(file) = settings.file().filter(|_| !output.resume) {
            check_not_overwriting(file, &output.path)?;
        }
        let config = settings.config()?;
        if world.is_first() {
            print(&config.text()?);
        }
        Ok(config)
    };
    let config = world.together("settings", read())?;
    let (weights, tokenizer) = load_over(world, &config)?;
    let read = || Ok((Dataset::read(&config, &tokenizer)?, Stop::on_signals()?));
    let (data, stop) = world.together("data", read())?;
    let outcome = run_over(world, &config, &weights, &data, Some(&output), &stop, &Progress::Shown)?;
    if !world.is_first() {
        return Ok(if outcome.stopped { ExitCode::from(STOPPED) } else { ExitCode::SUCCESS });
    }
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
    // No other format takes the head.
    let without_head = if config.task == Task::Classify { " --factors-only" } else { "" };
    say!("  kron convert {adapter} {lora} --to lora{without_head}");
    if config.model.is_dir() {
        say!("  kron merge {model} {adapter} {merged}");
    }
    if is_gguf(&config.model) {
        let [lora, merged] = ["lora.gguf", "merged.gguf"].map(|name| quoted(&folder.join(name)));
        say!("  kron convert {adapter} {lora} --to gguf-lora --base {model}{without_head}");
        say!("  kron merge {model} {adapter} {merged} --dtype f16");
    }
}

/// Quotes a path for a shell where it needs quotes.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A path has no zero byte, the only text that a shell cannot quote.
    shlex::try_quote(&text).unwrap_or(Cow::Borrowed(&text)).into_owned()
}
