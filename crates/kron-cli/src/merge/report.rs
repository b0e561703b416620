//! Result of `kron merge`, and its text.

use kron_adapter::text::one_line;
use serde::Serialize;

/// Result of a merge.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Path of the merged model.
    pub out: String,
    /// Number of layers of the adapter.
    pub layers: usize,
    /// Number of the model's tensors that trained ones replaced.
    pub replaced: usize,
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
    /// Names of tensors or modules of the adapter that were not merged.
    pub adapter_left_out: Vec<String>,
    /// Changes made while reading the adapter and matching its modules, and files removed, one sentence each.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the report as text.
    pub(super) fn table(&self) -> String {
        let kept = if self.kept > 0 { format!(" ({} of them kept)", self.kept) } else { String::new() };
        let replaced =
            if self.replaced > 0 { format!(", tensors replaced: {}", self.replaced) } else { String::new() };
        let mut lines = vec![format!(
            "{}: layers folded: {}{replaced}, files with weights: {}{kept}, {} bytes",
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
        lines.extend(self.notes.iter().map(|note| format!("note: {}", one_line(note))));
        lines.join("\n")
    }
}
