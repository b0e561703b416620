//! A folder into a folder: other files first, then the shards, then their index.

use std::io::ErrorKind;
use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_adapter::peft::{CONFIG, WEIGHTS as ADAPTER};
use kron_adapter::{Adapter, Existing};

use super::base::{Base, INDEX};
use super::journal::{JOURNAL, Journal};
use super::matching::Folds;
use super::{Args, Report, exists, shard};
use crate::files::Input;
use crate::watch::Watch;
use crate::{Error, Result};

/// Endings of files that hold weights, which would be the unmerged ones.
const WEIGHTS: [&str; 9] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".index.json"];

pub fn merge(
    args: &Args,
    from: &Path,
    base: &Base,
    adapter: &Adapter,
    folds: &Folds,
    watch: &Watch,
) -> Result<Report> {
    let out = args.out.as_path();
    let mut journal = begin(args, base, adapter)?;
    let notes = remove_stale(out, base, &journal)?.into_iter().collect();
    let mut report =
        Report { out: out.display().to_string(), shards: base.shards.len(), notes, ..Report::default() };
    copy_others(from, out, base, &mut report)?;
    for (i, shard) in base.shards.iter().enumerate() {
        if journal.has(out, &shard.name)? {
            report.kept += 1;
            watch.passed(shard.len)?;
            continue;
        }
        let how = (Existing::Replace, args.flush());
        let hash = shard::write(shard, &folds.of(i), &out.join(&shard.name), how, watch)?;
        journal.add(&shard.name, shard.len, hash)?;
    }
    // Without its index a sharded model is none, so that it cannot look whole before it is.
    if let Some(index) = &base.index {
        write_atomic(&out.join(INDEX), Existing::Replace, |to| to.write_all(index))?;
    }
    journal.end()?;
    Ok(report)
}

/// The folder ready to be written to, and its journal.
fn begin(args: &Args, base: &Base, adapter: &Adapter) -> Result<Journal> {
    let out = args.out.as_path();
    let refused = |e: std::io::Error| Error::data(format!("{}: {e}", out.display()));
    if out.symlink_metadata().is_ok() && !out.is_dir() {
        return Err(Error::usage(format!("{} is a file, but BASE is a folder", out.display())));
    }
    let new = !out.exists();
    std::fs::create_dir_all(out).map_err(refused)?;
    let names = names(out)?;
    let unfinished = names.iter().any(|name| name == JOURNAL);
    if args.resume && unfinished {
        remove_leftovers(out, &names)?;
        return Journal::resume(out, base, adapter);
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
    remove_leftovers(out, &names)?;
    if let Some(name) = names.iter().find(|name| [CONFIG, ADAPTER].contains(&name.as_str())) {
        return Err(Error::usage(format!(
            "{} holds {name}, an adapter, which would be loaded with the merged model; a merge goes to another place",
            out.display()
        )));
    }
    let stale = names.into_iter().filter(|name| is_stale(out, base, name)).collect();
    Journal::begin(out, base, adapter, stale).inspect_err(|_| {
        // What cannot begin leaves nothing.
        if new {
            let _ = std::fs::remove_dir(out);
        }
    })
}

/// Whether a loader would take a file that is there for one of the merged model's, before that is
/// whole or at any time.
fn is_stale(out: &Path, base: &Base, name: &str) -> bool {
    let written = base.shards.iter().any(|shard| shard.name == name);
    (name == INDEX || name.ends_with(".safetensors") && !written) && !out.join(name).is_dir()
}

/// Removes what is stale, and says which of it is not written anew.
fn remove_stale(out: &Path, base: &Base, journal: &Journal) -> Result<Option<String>> {
    for name in journal.stale() {
        match std::fs::remove_file(out.join(name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::data(format!("{}/{name} cannot be removed: {e}", out.display())));
            }
            _ => {}
        }
    }
    let gone = journal.stale().iter().filter(|name| *name != INDEX || base.index.is_none());
    let gone: Vec<&str> = gone.map(String::as_str).collect();
    let note =
        || format!("weights of another model were removed from {}: {}", out.display(), gone.join(", "));
    Ok((!gone.is_empty()).then(note))
}

/// Temporary files of a merge that was killed.
fn remove_leftovers(out: &Path, names: &[String]) -> Result<()> {
    for name in names.iter().filter(|name| name.starts_with(".kron-") && name.ends_with(".tmp")) {
        let refused = |e| Error::data(format!("{}/{name} cannot be removed: {e}", out.display()));
        std::fs::remove_file(out.join(name)).map_err(refused)?;
    }
    Ok(())
}

fn copy_others(from: &Path, out: &Path, base: &Base, report: &mut Report) -> Result<()> {
    for name in names(from)? {
        let source = from.join(&name);
        if name == JOURNAL || name == INDEX || base.shards.iter().any(|shard| shard.name == name) {
            continue;
        }
        // Its weights stay behind, and it would name an adapter that is not there.
        if !source.is_file() || name == CONFIG || WEIGHTS.iter().any(|ending| name.ends_with(ending)) {
            report.left_out.push(name);
            continue;
        }
        let mut file = Input::open(&source)?.into_file();
        let copied =
            write_atomic(&out.join(&name), Existing::Replace, |to| std::io::copy(&mut file, to).map(drop));
        copied?;
        report.copied.push(name);
    }
    Ok(())
}

/// The names in a folder, sorted.
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
