//! `kron convert ADAPTER OUT --to gguf-lora --base MODEL`: a LoRA for llama.cpp and Ollama.

use std::path::Path;
use std::process::ExitCode;

use kron_adapter::Loaded;
use kron_adapter::combine::sums_as_lora;
use kron_adapter::gguf::{Gguf, GgufLora, LlamaTensors, write_lora};
use kron_adapter::limits::{Limits, made_bytes};
use kron_adapter::peft::LoraOptions;
use kron_adapter::resolve::resolve_module_names;

use super::{Args, DtypeArg, FormatArg, Report, Side, rows};
use crate::model::CONFIG;
use crate::overwriting::check_not_overwriting;
use crate::{Error, Result, TextOrJson, progress};

/// Writes the file, reports, and returns 0.
///
/// # Errors
/// The adapter is invalid or does not fit the model, the model is of an unknown kind, or the output
/// exists or cannot be written.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    let Some(base) = &args.base else {
        return Err(Error::usage(
            "--to gguf-lora takes the names and the order of the rows from the model: give it with --base, a GGUF or a config.json",
        ));
    };
    if args.fit || args.uniform {
        return Err(Error::usage(
            "--fit and --uniform do not go with --to gguf-lora, in which every layer is a LoRA of a rank of its own",
        ));
    }
    [&args.input, base].iter().try_for_each(|source| check_not_overwriting(source, &args.output, false))?;
    let loaded = args.choice.read(&args.input)?;
    loaded.check_writable()?;
    let Loaded { path, bytes, format, adapter, mut notes, mut left_out, .. } = loaded;
    let base = tensors(base)?;
    let resolved = resolve_module_names(&adapter, &base)?;
    let adapter = resolved.adapter;
    let max_bytes = args.max_size.unwrap_or(made_bytes(bytes));
    let options =
        LoraOptions { join: args.side.map(Side::of), max_bytes: Some(max_bytes), ..LoraOptions::default() };
    let mut of_sums = Limits::new(bytes);
    of_sums.bytes = of_sums.bytes.with_limit(max_bytes);
    let adapter = sums_as_lora(&adapter, options.join, &mut of_sums)?;
    let bar = progress::items(adapter.layers().len(), "layers");
    let dtype = args.dtype.unwrap_or(DtypeArg::F32).into();
    let written = write_lora(&adapter, &base, options, dtype, &|layers| {
        bar.inc(layers);
        Ok(())
    })?;
    bar.finish_and_clear();
    let GgufLora { output, notes: changes, left_out: tensors, .. } = written;
    left_out.extend(args.leave_out(tensors)?);
    progress::write_output(&args.output, &output, args.force)?;
    notes.extend(resolved.notes);
    notes.extend(changes);
    let report = Report {
        input: path,
        from: format,
        output: args.output.display().to_string(),
        to: FormatArg::GgufLora,
        layers: rows(&adapter, &options.ranks(adapter.layers())),
        notes,
        left_out,
    };
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the names of a GGUF's tensors, or those that follow from a `config.json` or its folder.
fn tensors(base: &Path) -> Result<LlamaTensors> {
    if base.is_dir() {
        return LlamaTensors::of_config(&base.join(CONFIG));
    }
    match base.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        true => LlamaTensors::of_config(base),
        false => Gguf::open(base)?.llama_tensors(),
    }
}
