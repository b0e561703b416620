//! `kron convert MODEL.gguf OUT --to hf`: a model's folder with dequantised weights.

use std::path::Path;
use std::process::ExitCode;

use kron_adapter::gguf::Gguf;
use kron_adapter::io::write_atomic;
use kron_adapter::text::one_line;
use kron_adapter::{IfExists, write_new_folder};
use kron_core::Dtype;
use serde::Serialize;

use crate::overwriting::check_not_overwriting;
use crate::progress::WriteProgress;
use crate::{Error, Result, TextOrJson};

/// Printed result.
#[derive(Debug, Serialize)]
struct Report {
    input: String,
    output: String,
    dtype: String,
    tensors: usize,
    bytes: u64,
}

/// Writes the folder, reports, and returns 0.
///
/// # Errors
/// The file is not a GGUF of a known kind, the folder exists or cannot be written, or a signal came.
pub fn run(input: &Path, out: &Path, dtype: Dtype, form: TextOrJson) -> Result<ExitCode> {
    check_not_overwriting(input, out, true)?;
    let mut gguf = Gguf::open(input)?;
    let model = gguf.hugging_face()?;
    let values: usize = model.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let bytes = (values * dtype.size()) as u64;
    let progress = WriteProgress::new(bytes)?;
    write_new_folder(out, |folder| {
        let file = |name: &str, json: &serde_json::Value| {
            write_atomic(&folder.join(name), IfExists::Refuse, |to| {
                Ok(serde_json::to_writer_pretty(to, json)?)
            })
        };
        file("config.json", &model.config)?;
        file("tokenizer.json", &model.tokenizer)?;
        file("tokenizer_config.json", &model.tokenizer_config)?;
        // `write_atomic` takes only an I/O error, so another error is kept here.
        let mut failed = None;
        let written = write_atomic(&folder.join("model.safetensors"), IfExists::Refuse, |to| {
            let progress = |bytes| progress.advance(bytes);
            let done = gguf.write_safetensors(&model.tensors, dtype, &mut |_, _, _| Ok(()), to, &progress);
            done.map_err(|error| {
                failed = Some(error);
                std::io::Error::other("the conversion failed")
            })
        });
        failed.map_or(written, Err::<(), Error>)
    })?;
    progress.finish();
    let report = Report {
        input: gguf.path().into(),
        output: out.display().to_string(),
        dtype: dtype.to_string(),
        tensors: model.tensors.len(),
        bytes,
    };
    form.print(&report, |report| {
        let Report { input, output, dtype, tensors, bytes } = report;
        let (input, output) = (one_line(input), one_line(output));
        format!("{input} → {output}: tensors dequantised to {dtype}: {tensors}, {bytes} bytes")
    })?;
    Ok(ExitCode::SUCCESS)
}
