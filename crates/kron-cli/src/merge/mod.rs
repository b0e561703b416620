//! `kron merge BASE ADAPTER OUT`: W + ΔW, shard by shard.
//!
//! ```text
//! BASE ── Base: headers of all shards ─┐
//! ADAPTER ── Adapter ──────────────────┴─ Folds ── shard: bytes through, adapted rows folded ── OUT
//!                                                   journal: which shards are whole
//! ```
//!
//! A header passes through as it is, as neither names, shapes nor dtypes change.
//! A shard is mapped into memory a band of rows at a time. What is resident is a few bands,
//! while one thread copies, one folds and one writes.

pub mod base;
mod fold;
mod folder;
mod journal;
mod map;
mod matching;
mod shard;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kron_adapter::Existing;
use kron_adapter::io::Flush;
use kron_adapter::{Loaded, lycoris, rooted};
use serde::Serialize;

use crate::apart::apart;
use crate::error::exit_codes;
use crate::model::CONFIG;
use crate::watch::Watch;
use crate::{Error, Output, Result};

use base::Base;
use matching::Folds;

/// Fold an adapter into a model: W + ΔW, rounded once to the model's dtype.
///
/// BASE is one safetensors file, or a folder with model.safetensors or with
/// model.safetensors.index.json and its shards; f32, f16 and bf16 weights. ADAPTER is an adapter
/// file of this project, a PEFT folder with LoRA or LoKr, or a LyCORIS file with LoKr. OUT is a
/// file or a folder, as BASE is; the configuration and the tokenizer are copied along.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "A file appears under its name when it is whole, the index of the shards as the last one. A\n",
    "merge into a folder that was interrupted goes on with --resume; shards whose size and hash are\n",
    "those in the journal .kron-merge.json are kept. With --force, safetensors files and an index of\n",
    "another model that are in the folder OUT are removed, as a loader might prefer them.\n\n",
    exit_codes!("merged", "the model or the adapter is at fault, they do not belong together"),
    "Example: kron merge llama-3-8b adapter.safetensors merged"
))]
pub struct Args {
    /// The model: a safetensors file or a folder
    base: PathBuf,
    /// The adapter: a file, or a PEFT folder
    adapter: PathBuf,
    /// Where the merged model goes: a file or a folder, as BASE is
    out: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    /// Go on with an interrupted merge into the folder OUT
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Wait until the disk holds each file; without it, as after cp, a power cut soon after may cut files short
    #[arg(long)]
    sync: bool,
}

impl Args {
    /// Who sees to it that the shards are on the disk.
    const fn flush(&self) -> Flush {
        if self.sync { Flush::Now } else { Flush::Later }
    }
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Where the merged model is.
    pub out: String,
    /// Layers folded in.
    pub layers: usize,
    /// Files with weights.
    pub shards: usize,
    /// Those of them that an interrupted merge had left whole.
    pub kept: usize,
    /// Bytes of all files with weights.
    pub bytes: u64,
    /// Other files that were copied.
    pub copied: Vec<String>,
    /// Files and folders that were not: weights in other formats, sub-folders.
    pub left_out: Vec<String>,
    /// What reading the adapter and finding its modules changed, and what was removed, one sentence each.
    pub notes: Vec<String>,
}

/// Merges, and prints what was done.
///
/// # Errors
/// A model or an adapter that cannot be read, layers that match nothing, an OUT
/// that is there, and what the system refuses.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let folder = args.base.is_dir();
    apart(&args.base, &args.out, folder)?;
    apart(&args.adapter, &args.out, folder)?;
    if !folder {
        apart(&args.base.with_file_name(CONFIG), &args.out, false)?;
    }
    let base = Base::open(&args.base)?;
    // A folder may hold links to shards that lie elsewhere.
    base.shards.iter().try_for_each(|shard| apart(&shard.path, &args.out, folder))?;
    let Loaded { adapter, notes, .. } = read(&args.adapter, &base)?;
    let folds = Folds::new(&base, &adapter)?;
    let watch = Watch::new(base.bytes())?;
    map::catch_bus_errors()?;
    let report = match base.folder() {
        Some(folder) => folder::merge(args, folder, &base, &adapter, &folds, &watch)?,
        None => file(args, &base, &folds, &watch)?,
    };
    watch.finish();
    let notes = [notes, report.notes].concat();
    let report = Report { layers: adapter.layers().len(), bytes: base.bytes(), notes, ..report };
    output.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// The adapter, with the model's names for its modules.
fn read(path: &Path, base: &Base) -> Result<Loaded> {
    let mut loaded = kron_adapter::read(path)?;
    loaded.adapter = lycoris::with_names_of(&loaded.adapter, base.modules())?;
    if let Some((adapter, note)) = rooted(&loaded.adapter, base.modules()) {
        loaded.adapter = adapter;
        loaded.notes.push(note);
    }
    let layers = loaded.adapter.layers();
    // A square weight would take the wrong ΔW without a word.
    let plain = layers.iter().find(|layer| loaded.fan_in_fan_out && !base.transposed(layer.module()));
    match plain {
        None => Ok(loaded),
        Some(layer) => Err(Error::data(format!(
            "{}: fan_in_fan_out is true, but {} does not say that the weight of {} is stored transposed",
            loaded.path,
            base.path(),
            layer.module()
        ))),
    }
}

/// One file into one file.
fn file(args: &Args, base: &Base, folds: &Folds, watch: &Watch) -> Result<Report> {
    if args.out.exists() && !args.out.is_file() {
        return Err(Error::usage(format!("{} is no regular file, but BASE is one", args.out.display())));
    }
    if args.resume {
        return Err(Error::usage("--resume is for folders: a merge into one file starts from the beginning"));
    }
    if !args.force && args.out.symlink_metadata().is_ok() {
        return Err(exists(&args.out));
    }
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    for (i, shard) in base.shards.iter().enumerate() {
        shard::write(shard, &folds.of(i), &args.out, (existing, args.flush()), watch)?;
    }
    Ok(Report { out: args.out.display().to_string(), shards: 1, ..Report::default() })
}

fn exists(out: &Path) -> Error {
    Error::usage(format!("{} is there already; --force overwrites it", out.display()))
}

impl Report {
    fn table(&self) -> String {
        let kept = if self.kept > 0 { format!(" ({} of them kept)", self.kept) } else { String::new() };
        let mut lines = vec![format!(
            "{}: layers folded: {}, files with weights: {}{kept}, {} bytes",
            self.out, self.layers, self.shards, self.bytes
        )];
        for (what, names) in [("copied", &self.copied), ("left out", &self.left_out)] {
            if !names.is_empty() {
                lines.push(format!("{what}: {}", names.join(", ")));
            }
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n")
    }
}
