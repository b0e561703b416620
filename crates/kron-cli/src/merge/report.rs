//! Result of `kron merge`, and its text.

use kron_adapter::text::one_line;
use serde::Serialize;

use super::inputs::{Inputs, SkippedTensor};

/// Result of a merge.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Path of the merged model.
    pub out: String,
    /// Number of layers of the adapters.
    pub layers: usize,
    /// Number of the model's tensors that trained ones replaced.
    pub replaced: usize,
    /// Number of the model's tensors beside the layers' to which values were added.
    pub added: usize,
    /// Number of files with weights.
    pub shards: usize,
    /// Number of those that an interrupted merge had finished.
    pub kept: usize,
    /// Bytes of all files with weights.
    pub bytes: u64,
    /// Names of other files that were copied.
    pub copied: Vec<String>,
    /// Names of files and folders that were not copied: weights in other formats, sub-folders.
    pub left_out: Vec<String>,
    /// Names of tensors or modules of the adapters that were not chosen, and so not merged.
    pub adapter_left_out: Vec<String>,
    /// Tensors of the adapters that did not reach the output, by --skip-unsupported.
    pub skipped: Vec<SkippedTensor>,
    /// Changes made while reading the adapters and matching its modules, and files removed, one sentence each.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the report with the facts about the adapters, whose notes come before its own.
    pub(super) fn of(self, inputs: Inputs, copies: Vec<String>) -> Self {
        let (layers, replaced, added) = (inputs.layers(), inputs.replaced(), inputs.added());
        let notes = [inputs.notes, copies, self.notes].concat();
        let (adapter_left_out, skipped) = (inputs.left_out, inputs.skipped);
        Self { layers, replaced, added, adapter_left_out, skipped, notes, ..self }
    }

    /// Returns the report as text.
    pub(super) fn table(&self) -> String {
        let kept = if self.kept > 0 { format!(" ({} of them kept)", self.kept) } else { String::new() };
        let replaced =
            if self.replaced > 0 { format!(", tensors replaced: {}", self.replaced) } else { String::new() };
        let added =
            if self.added > 0 { format!(", other tensors added to: {}", self.added) } else { String::new() };
        let mut lines = vec![format!(
            "{}: layers folded: {}{replaced}{added}, files with weights: {}{kept}, {} bytes",
            one_line(&self.out),
            self.layers,
            self.shards,
            self.bytes
        )];
        let lists = [
            ("copied", &self.copied),
            ("left out", &self.left_out),
            ("left out of the adapter", &self.adapter_left_out),
        ];
        for (what, names) in lists {
            if !names.is_empty() {
                lines.push(format!("{what}: {}", one_line(&names.join(", "))));
            }
        }
        lines.extend(self.skipped.iter().map(|SkippedTensor { adapter, tensor }| {
            one_line(&format!("skipped: {} of {adapter}: {}", tensor.tensor, tensor.why)).into_owned()
        }));
        lines.extend(self.notes.iter().map(|note| format!("note: {}", one_line(note))));
        lines.join("\n")
    }
}
