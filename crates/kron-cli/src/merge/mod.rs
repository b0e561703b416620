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
mod copies;
mod fold;
mod folder;
mod folds;
mod gguf;
mod inputs;
mod journal;
mod map;
mod report;
mod rescale;
mod shard;
mod tied;
mod transpose;
mod trial;

use std::process::ExitCode;

use kron_adapter::IfExists;
use kron_adapter::gguf::is_gguf;

use crate::model::Base;
use crate::overwriting::{check_model_not_overwriting, check_not_overwriting};
use crate::progress::WriteProgress;
use crate::{Error, Result, TextOrJson};

pub use args::Args;
pub use inputs::Unresolved;
pub use report::Report;
pub use trial::fold_zeros;

use folds::Folds;
use inputs::Inputs;

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
    let adapters = args.adapters.iter();
    adapters
        .map(|adapter| &adapter.path)
        .try_for_each(|path| check_not_overwriting(path, &args.out, folder))?;
    let mut base = Base::open(&args.base)?;
    check_model_not_overwriting(&args.base, &base, &args.out, folder)?;
    map::catch_bus_errors()?;
    let adapters = inputs::read(args)?;
    let untied = tied::untie(&mut base, &adapters)?;
    let mut inputs = Inputs::new(adapters, &base, args.skip_unsupported)?;
    tied::repeat_tokens(&base, &mut inputs)?;
    let mut notes = copies::check(&base, &inputs)?;
    notes.extend(untied.note);
    let folds = Folds::new(&base, &inputs)?;
    let progress = WriteProgress::new(base.bytes())?;
    let report = match base.folder() {
        Some(folder) => {
            let config = untied.config.as_deref();
            folder::merge(args, folder, &base, &inputs, &folds, (config, &progress))?
        }
        None => file(args, &base, &folds, &progress)?,
    };
    progress.finish();
    let report = Report { bytes: base.bytes(), ..report };
    Ok(report.of(inputs, notes))
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
