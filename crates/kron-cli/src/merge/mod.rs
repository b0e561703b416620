//! `kron merge BASE ADAPTER OUT`: writes W + ΔW and the trained tensors, shard by shard.
//!
//! ```text
//! BASE ── Base: headers of all shards ─┐
//! ADAPTER ── Adapter ──────────────────┴─ Folds ── shard: copies bytes, changes bands of rows ── OUT
//!                                                   journal: lists the finished shards
//! ```
//!
//! A GGUF takes the same ΔW, some dequantised rows at a time, and becomes one file.
//!
//! A shard's header is copied unchanged, as neither names, shapes nor dtypes change.
//! A shard is read in bands of rows. Only a few bands are resident, while one thread
//! reads, one changes them and one writes.

mod args;
mod fold;
mod folder;
mod folds;
mod gguf;
mod journal;
mod map;
mod report;
mod shard;

use std::process::ExitCode;

use kron_adapter::gguf::is_gguf;
use kron_adapter::resolve::{BaseModel, Resolved, resolve_module_names};
use kron_adapter::{IfExists, Layer, Loaded};

use crate::model::Base;
use crate::overwriting::{check_model_not_overwriting, check_not_overwriting};
use crate::progress::WriteProgress;
use crate::{Error, Result, TextOrJson};

pub use args::Args;
pub use report::Report;

use folds::Folds;

/// Merges, and prints the report.
///
/// # Errors
/// The model or the adapter cannot be read, a layer matches no tensor, OUT exists, or the system
/// refuses a read or a write.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    let report = if is_gguf(&args.base) { gguf::merge(args)? } else { safetensors(args)? };
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// Merges a file or a folder of safetensors.
fn safetensors(args: &Args) -> Result<Report> {
    if args.dtype.is_some() {
        return Err(Error::usage(
            "--dtype is the type to which a GGUF is dequantised; another model keeps the types of its weights",
        ));
    }
    let folder = args.base.is_dir();
    check_not_overwriting(&args.base, &args.out, folder)?;
    check_not_overwriting(&args.adapter, &args.out, folder)?;
    let base = Base::open(&args.base)?;
    check_model_not_overwriting(&args.base, &base, &args.out, folder)?;
    let Loaded { adapter, notes, left_out, .. } = read(args, &base)?;
    let folds = Folds::new(&base, &adapter)?;
    let progress = WriteProgress::new(base.bytes())?;
    map::catch_bus_errors()?;
    let report = match base.folder() {
        Some(folder) => folder::merge(args, folder, &base, &adapter, &folds, &progress)?,
        None => file(args, &base, &folds, &progress)?,
    };
    progress.finish();
    let notes = [notes, report.notes].concat();
    let (layers, replaced) = (adapter.layers().len(), adapter.trained_tensors().len());
    Ok(Report { layers, replaced, bytes: base.bytes(), notes, adapter_left_out: left_out, ..report })
}

/// Reads the adapter and gives its modules the model's names.
fn read(args: &Args, base: &impl BaseModel) -> Result<Loaded> {
    let mut loaded = args.choice.read(&args.adapter)?;
    let Resolved { adapter, notes } = resolve_module_names(&loaded.adapter, base)?;
    loaded.adapter = adapter;
    loaded.notes.extend(notes);
    if let Some(names) = loaded.adapter.trained_summary().filter(|_| args.factors_only) {
        loaded.notes.push(format!("--factors-only leaves these trained tensors out: {names}"));
        loaded.adapter = loaded.adapter.with_trained_tensors(Vec::new())?;
    }
    let layers = loaded.adapter.layers();
    // A square weight would take the transposed ΔW without an error.
    let plain = |layer: &&Layer| base.is_transposed(layer.module()) != Some(true);
    match layers.iter().find(|layer| loaded.fan_in_fan_out && plain(layer)) {
        None => Ok(loaded),
        Some(layer) => Err(Error::data(format!(
            "{}: fan_in_fan_out is true, but {} does not say that the weight of {} is stored transposed",
            loaded.path,
            base.name(),
            layer.module()
        ))),
    }
}

/// Merges one file into one file.
fn file(args: &Args, base: &Base, folds: &Folds, progress: &WriteProgress) -> Result<Report> {
    let existing = existing(args)?;
    for (i, shard) in base.shards.iter().enumerate() {
        shard::write(shard, &folds.of_shard(i), &args.out, (existing, args.flush()), progress)?;
    }
    Ok(Report { out: args.out.display().to_string(), shards: 1, ..Report::default() })
}

/// Returns what is to happen to an existing OUT where BASE is a file.
fn existing(args: &Args) -> Result<IfExists> {
    if args.out.exists() && !args.out.is_file() {
        return Err(Error::usage(format!("{} is not a regular file, but BASE is one", args.out.display())));
    }
    if args.resume {
        return Err(Error::usage("--resume is for folders: a merge into one file starts from the beginning"));
    }
    if !args.force && args.out.symlink_metadata().is_ok() {
        return Err(folder::exists(&args.out));
    }
    Ok(if args.force { IfExists::Replace } else { IfExists::Refuse })
}
