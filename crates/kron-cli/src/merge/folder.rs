//! Merge of a folder into a folder: other files first, then the shards, then their index.

use std::io::ErrorKind;
use std::path::Path;

use kron_adapter::IfExists;
use kron_adapter::io::{Input, OutputLock, is_temporary, remove_leftovers, write_atomic};
use kron_adapter::peft::{CONFIG, WEIGHTS as ADAPTER};

use super::args::Args;
use super::folds::Folds;
use super::inputs::Inputs;
use super::journal::{JOURNAL, Journal};
use super::report::Report;
use super::shard;
use crate::model::{Base, CONFIG as MODEL_CONFIG, INDEX};
use crate::progress::WriteProgress;
use crate::{Error, Result};

/// File that describes a model.
const CARD: &str = "README.md";
/// Endings of files with weights. They hold unmerged weights, so they are not copied.
const WEIGHTS: [&str; 9] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".index.json"];

/// Merges the model in the folder `from`.
///
/// # Errors
/// OUT exists or belongs to another merge, a shard cannot be read or written, or a signal came.
pub fn merge(
    args: &Args,
    from: &Path,
    base: &Base,
    inputs: &Inputs,
    folds: &Folds,
    (config, progress): (Option<&[u8]>, &WriteProgress),
) -> Result<Report> {
    let out = args.out.as_path();
    let (_lock, mut journal) = begin(args, base, inputs)?;
    let mut report =
        Report { out: out.display().to_string(), shards: base.shards.len(), ..Report::default() };
    for (i, shard) in base.shards.iter().enumerate() {
        if journal.has(out, &shard.name)? {
            report.kept += 1;
            progress.advance(shard.out_len())?;
            continue;
        }
        if out.join(&shard.name).exists() {
            // With the old index, new and old shards would load as one model.
            remove(out, INDEX)?;
        }
        let how = (IfExists::Replace, args.flush());
        let hash = shard::write(shard, &folds.of_shard(i), &out.join(&shard.name), how, progress)?;
        journal.add(&shard.name, shard.out_len(), hash)?;
    }
    copy_others(from, out, (base, config), &mut report)?;
    // Loaders need the index, so the model cannot look complete before all shards are.
    if let Some(index) = &base.index {
        write_atomic(&out.join(INDEX), IfExists::Replace, |to| to.write_all(index))?;
    }
    // Until the model is whole, a failure may not cost the other one.
    report.notes.extend(remove_stale(out, base, &journal)?);
    journal.end()?;
    Ok(report)
}

/// Makes and locks the folder, and begins or resumes its journal. A merge that cannot begin leaves no
/// empty folder.
fn begin(args: &Args, base: &Base, inputs: &Inputs) -> Result<(OutputLock, Journal)> {
    let out = args.out.as_path();
    let refused = |e: std::io::Error| Error::data(format!("{}: {e}", out.display()));
    if out.symlink_metadata().is_ok() && !out.is_dir() {
        return Err(Error::usage(format!("{} is a file, but BASE is a folder", out.display())));
    }
    let new = !out.exists();
    let lock = loop {
        std::fs::create_dir_all(out).map_err(refused)?;
        match OutputLock::folder(out) {
            // Another merge, which could not begin, removed the folder that it had made.
            Err(_) if !out.exists() => {}
            lock => break lock,
        }
    };
    let begun = lock.and_then(|lock| Ok((lock, journal(args, base, inputs)?)));
    if begun.is_err() && new {
        let _ = std::fs::remove_dir(out);
    }
    begun
}

/// Begins or resumes the journal of a locked folder.
fn journal(args: &Args, base: &Base, inputs: &Inputs) -> Result<Journal> {
    let out = args.out.as_path();
    remove_leftovers(out);
    let names: Vec<String> = names(out)?.into_iter().filter(|name| !is_temporary(name.as_ref())).collect();
    let unfinished = names.iter().any(|name| name == JOURNAL);
    match (args.resume, unfinished) {
        (true, true) => return Journal::resume(out, base, inputs),
        (true, false) => {
            let message = "holds no unfinished merge; without --resume a merge begins";
            return Err(Error::usage(format!("{} {message}", out.display())));
        }
        _ => {}
    }
    if unfinished && !args.force {
        return Err(Error::usage(format!(
            "{} holds an unfinished merge; --resume goes on with it, --force begins anew",
            out.display()
        )));
    }
    if !names.is_empty() && !args.force {
        return Err(exists(out));
    }
    if let Some(name) = names.iter().find(|name| [CONFIG, ADAPTER].contains(&name.as_str())) {
        return Err(Error::usage(format!(
            "{} holds {name}, an adapter, which would be loaded with the merged model; a merge goes to another place",
            out.display()
        )));
    }
    let stale = names.into_iter().filter(|name| is_stale(out, base, name)).collect();
    Journal::begin(out, base, inputs, stale)
}

/// Returns true for a file in `out` that a loader could take for one of the merged model's.
fn is_stale(out: &Path, base: &Base, name: &str) -> bool {
    let written = base.shards.iter().any(|shard| shard.name == name);
    (name == INDEX || name.ends_with(".safetensors") && !written) && !out.join(name).is_dir()
}

/// Removes stale files that are not written anew, and returns a note on them.
fn remove_stale(out: &Path, base: &Base, journal: &Journal) -> Result<Option<String>> {
    let gone = journal.stale().iter().filter(|name| *name != INDEX || base.index.is_none());
    let gone: Vec<&str> = gone.map(String::as_str).collect();
    gone.iter().try_for_each(|name| remove(out, name))?;
    let note =
        || format!("weights of another model were removed from {}: {}", out.display(), gone.join(", "));
    Ok((!gone.is_empty()).then(note))
}

/// Removes a file that may be gone already.
fn remove(out: &Path, name: &str) -> Result<()> {
    match std::fs::remove_file(out.join(name)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::data(format!("{}/{name} cannot be removed: {e}", out.display())))
        }
        _ => Ok(()),
    }
}

/// Copies all files but weights, an index, a journal and an adapter's configuration. A README.md in OUT
/// is its owner's and stays. The model's configuration may be another one.
fn copy_others(
    from: &Path,
    out: &Path,
    (base, config): (&Base, Option<&[u8]>),
    report: &mut Report,
) -> Result<()> {
    for name in names(from)? {
        let source = from.join(&name);
        if name == JOURNAL || name == INDEX || base.shards.iter().any(|shard| shard.name == name) {
            continue;
        }
        if name == CARD && out.join(CARD).symlink_metadata().is_ok() {
            report.notes.push(format!("{} has a {CARD}, which stays", out.display()));
            continue;
        }
        // An adapter's configuration would name weights that are not copied.
        if !source.is_file() || name == CONFIG || WEIGHTS.iter().any(|ending| name.ends_with(ending)) {
            report.left_out.push(name);
            continue;
        }
        let mut file = Input::open(&source)?.into_file();
        let copied = write_atomic(&out.join(&name), IfExists::Replace, |to| {
            match config.filter(|_| name == MODEL_CONFIG) {
                Some(config) => to.write_all(config),
                None => std::io::copy(&mut file, to).map(drop),
            }
        });
        copied?;
        report.copied.push(name);
    }
    Ok(())
}

/// Returns the names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let refused = |e| Error::data(format!("{} cannot be read: {e}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(refused)? {
        let name = entry.map_err(refused)?.file_name();
        names.push(name.into_string().map_err(|name| {
            Error::data(format!("{} has a name that is not UTF-8: {name:?}", folder.display()))
        })?);
    }
    names.sort();
    Ok(names)
}

/// Returns the error of an output that exists.
pub fn exists(out: &Path) -> Error {
    Error::usage(format!("{} is there already; --force overwrites it", out.display()))
}
