//! Merge of a GGUF: some rows at a time are dequantised, take ΔW, and are rounded once.

use std::cell::Cell;
use std::path::Path;

use kron_adapter::gguf::{Gguf, HuggingFaceTensor};
use kron_adapter::io::write_whole;

use super::args::Args;
use super::copies::copies;
use super::fold::Workspace;
use super::folds::by_tensor;
use super::inputs::{self, Inputs};
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
    std::iter::once(&args.base)
        .chain(args.adapters.iter().map(|adapter| &adapter.path))
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
    let inputs = Inputs::new(inputs::read(args)?, &tensors, args.skip_unsupported)?;
    // Rows are float32 when they are changed.
    let folds = by_tensor(&tensors, &inputs)?;
    if let Some((tensor, _)) = folds.iter().find(|(_, fold)| fold.needs_norms()) {
        return Err(Error::data(format!(
            "{tensor} is rescaled by norms of its columns, which need all rows at once; a GGUF is dequantised some rows at a time, so merge into the model in safetensors"
        )));
    }
    let of_copy = |change: &str| {
        format!("{change} was left out; a GGUF holds no weight that it could be compared with")
    };
    let mut notes: Vec<_> = copies(&inputs).map(|(_, copy)| of_copy(copy.source())).collect();
    let mut workspace = Workspace::default();
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
    let (out, bytes) = (args.out.display().to_string(), bytes.get());
    Ok(Report { out, shards: 1, bytes, ..Report::default() }.of(inputs, notes))
}
