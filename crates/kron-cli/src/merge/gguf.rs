//! Merge of a GGUF: some rows at a time are dequantised, take ΔW, and are rounded once.

use std::cell::Cell;
use std::path::Path;

use kron_adapter::Loaded;
use kron_adapter::gguf::{Gguf, HuggingFaceTensor};
use kron_adapter::io::write_whole;

use super::args::Args;
use super::folds::by_tensor;
use super::report::Report;
use crate::overwriting::check_not_overwriting;
use crate::progress::WriteProgress;
use crate::{Error, Result};

/// Format of the merged model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Gguf,
}

impl Format {
    /// Returns the format that a file's ending names.
    fn of(out: &Path) -> Result<Self> {
        let extension = out.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("safetensors") => Ok(Format::Safetensors),
            Some("gguf") => Ok(Format::Gguf),
            _ => Err(Error::usage(format!(
                "{} ends in neither .safetensors nor .gguf, one of which a merged GGUF becomes",
                out.display()
            ))),
        }
    }
}

/// Merges the GGUF `args.base` into one file.
///
/// # Errors
/// `--dtype` is missing, the model or the adapter cannot be read, a layer matches no tensor, OUT exists,
/// or the system refuses a read or a write.
pub fn merge(args: &Args) -> Result<Report> {
    [&args.base, &args.adapter]
        .iter()
        .try_for_each(|source| check_not_overwriting(source, &args.out, false))?;
    let Some(dtype) = args.dtype.map(kron_core::Dtype::from) else {
        return Err(Error::usage(format!(
            "{} is a GGUF, and W + ΔW is not quantised again, which would round much of ΔW away: choose the type of the merged weights with --dtype f32, f16 or bf16",
            args.base.display()
        )));
    };
    let format = Format::of(&args.out)?;
    let existing = super::existing(args)?;
    let mut gguf = Gguf::open(&args.base)?;
    let tensors = gguf.llama_tensors()?;
    let Loaded { adapter, mut notes, left_out, .. } = super::read(args, &tensors)?;
    // Rows are float32 when they are changed.
    let folds = by_tensor(&tensors, &adapter)?;
    let mut workspace = Vec::new();
    let mut fold =
        |tensor: &HuggingFaceTensor, first_row: usize, rows: &mut [f32]| match folds.get(&tensor.name) {
            Some(fold) => fold.apply(&tensor.name, first_row, bytemuck::cast_slice_mut(rows), &mut workspace),
            None => Ok(()),
        };
    let values: usize = tensors.all().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let bar = WriteProgress::new((values * dtype.size()) as u64)?;
    let bytes = Cell::new(0);
    let progress = |more| {
        bytes.set(bytes.get() + more);
        bar.advance(more)
    };
    // `write_whole` takes only an I/O error, so another error is kept here.
    let mut failed = None;
    let written = write_whole(&args.out, existing, args.flush(), |to| {
        let done = match format {
            Format::Safetensors => gguf.write_safetensors(tensors.all(), dtype, &mut fold, to, &progress),
            Format::Gguf => gguf.write_gguf(&tensors, dtype, &mut fold, to, &progress),
        };
        done.map_err(|error| {
            failed = Some(error);
            std::io::Error::other("the merge failed")
        })
    });
    failed.map_or(written, Err)?;
    bar.finish();
    if format == Format::Safetensors && tensors.all().len() < gguf.tensors().len() {
        notes.push("rope_freqs.weight was left out: Hugging Face computes it from the configuration".into());
    }
    let (out, layers, replaced) =
        (args.out.display().to_string(), adapter.layers().len(), adapter.trained_tensors().len());
    let adapter_left_out = left_out;
    Ok(Report {
        out,
        layers,
        replaced,
        shards: 1,
        bytes: bytes.get(),
        notes,
        adapter_left_out,
        ..Report::default()
    })
}
