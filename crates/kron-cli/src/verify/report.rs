//! The report of `kron verify`: as data, and as a table.

use kron_adapter::text::one_line;
use std::collections::BTreeSet;

use comfy_table::{Cell, CellAlignment, Table, presets};
use kron_core::{Dtype, Isa};
use serde::Serialize;

use super::case::Case;
use super::judge::{Errors, Row, Verdict};

/// Result of a verification.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Instruction set.
    pub isa: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// True if every result of every case is within its bound.
    pub ok: bool,
    /// Cases in the order of the index.
    pub cases: Vec<CaseReport>,
}

/// Result of one case.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// Name in the index.
    pub name: String,
    /// Shape, in words.
    pub shape: String,
    /// Dtype of the activations.
    pub dtype: &'static str,
    /// Dtype of the stored factors.
    pub adapter_dtype: &'static str,
    /// Number of tokens.
    pub rows: usize,
    /// Scale s.
    pub scale: f64,
    /// True if every result is within its bound.
    pub ok: bool,
    /// Comparisons, one per output.
    pub tensors: Vec<Row>,
}

impl CaseReport {
    /// Combines a case with its comparisons.
    pub fn new(case: &Case, tensors: Vec<Row>) -> Self {
        Self {
            name: case.name.clone(),
            shape: case.shape().to_string(),
            dtype: case.dtype.name(),
            adapter_dtype: case.adapter_dtype.name(),
            rows: case.rows(),
            scale: case.scale,
            ok: tensors.iter().all(|row| row.verdict == Verdict::Ok),
            tensors,
        }
    }
}

impl Report {
    /// Combines the reports of all cases.
    pub fn new(isa: Isa, threads: usize, cases: Vec<CaseReport>) -> Self {
        Self { isa: isa.name(), threads, ok: cases.iter().all(|case| case.ok), cases }
    }

    /// Returns the table, the failures in words, and a line of summary.
    pub fn table(&self) -> String {
        let names = self.cases.iter().flat_map(|case| &case.tensors).flat_map(|row| row.frameworks.keys());
        let frameworks: BTreeSet<&String> = names.collect();
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        let header =
            ["case", "tensor", "ours"].into_iter().chain(frameworks.iter().map(|name| name.as_str()));
        table.set_header(header.chain(["plain", "bound", "used", ""]));
        table.add_rows(self.cases.iter().map(|case| case.cells(&frameworks)));
        let failures = self.cases.iter().flat_map(CaseReport::failures);
        let lines = [table.trim_fmt(), LEGEND.into()].into_iter().chain(failures).chain([self.summary()]);
        lines.collect::<Vec<_>>().join("\n")
    }

    fn summary(&self) -> String {
        let rows = || self.cases.iter().flat_map(|case| &case.tensors);
        let bad = rows().filter(|row| row.verdict != Verdict::Ok).count();
        let all = rows().count();
        let on = format!("{} on {}", plural(self.cases.len(), "case"), plural(self.threads, "thread"));
        match bad {
            0 => format!("{on} of {}: all {all} results within bounds", self.isa),
            _ => format!("{on} of {}: {bad} of {all} results FAIL", self.isa),
        }
    }
}

/// Legend of the table.
const LEGEND: &str = "\
ours, frameworks, plain: ‖error‖ / ‖reference‖; plain: float32 matrix products; ≠: differs by more than rounding, so sets no bound.
bound: 2× (gradients 3×) the largest error of the peers or of one rounding; used: our error / bound, in the worse of two norms.";

impl CaseReport {
    /// Returns the case's row of the table, each cell with a line for each tensor.
    fn cells(&self, frameworks: &BTreeSet<&String>) -> Vec<Cell> {
        let dtype = self.dtype.parse().unwrap_or(Dtype::F32);
        let column = |text: &dyn Fn(&Row) -> String| {
            Cell::new(self.tensors.iter().map(text).collect::<Vec<_>>().join("\n"))
        };
        let numbers = |text: &dyn Fn(&Row) -> String| column(text).set_alignment(CellAlignment::Right);
        let peer =
            |errors: &Errors| number(errors.frobenius) + if errors.agree(dtype) { "  " } else { " ≠" };
        let mut cells = vec![Cell::new(self.title()), column(&|row| row.tensor.name().into())];
        cells.push(numbers(&|row| number(row.ours.frobenius)));
        for &name in frameworks {
            cells.push(numbers(&|row| row.frameworks.get(name).map_or("–  ".into(), peer)));
        }
        cells.push(numbers(&|row| number(row.plain.frobenius)));
        cells.push(numbers(&|row| number(row.bound.frobenius)));
        cells.push(numbers(&|row| format!("{:.0} %", 100.0 * row.share)));
        cells.push(column(&|row| row.verdict.word().into()));
        cells
    }

    fn title(&self) -> String {
        format!(
            "{}\n{}\n{}, adapter {}\n{}, scale {}",
            one_line(&self.name),
            self.shape,
            self.dtype,
            self.adapter_dtype,
            plural(self.rows, "row"),
            self.scale
        )
    }

    fn failures(&self) -> impl Iterator<Item = String> {
        self.tensors.iter().filter_map(|row| {
            let (name, tensor) = (&self.name, row.tensor.name());
            match row.verdict {
                Verdict::Ok => None,
                Verdict::OutOfBounds => Some(format!(
                    "FAIL {name}: {tensor} is {} from the reference (largest element {}), the bound is {} ({})",
                    number(row.ours.frobenius),
                    number(row.ours.largest),
                    number(row.bound.frobenius),
                    number(row.bound.largest),
                )),
                Verdict::WrongReference => Some(format!(
                    "FAIL {name}: the stored reference of {tensor} is {} (largest element {}) from the \
                     formulas in float64, but one rounding to float32 is at most {}",
                    number(row.reference.frobenius),
                    number(row.reference.largest),
                    number(Dtype::F32.unit_roundoff()),
                )),
            }
        })
    }
}

/// Writes an error with two digits.
fn number(v: f64) -> String {
    if v == 0.0 { "0".into() } else { format!("{v:.1e}") }
}

fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
