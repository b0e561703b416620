//! The tables of the terminal and of the Markdown file.

use comfy_table::{CellAlignment, Table, presets};

use crate::engines::Kind;
use crate::format::{bytes, count, error, percent, seconds, times};
use crate::problem::TimedPasses;
use crate::record::{Record, Row};
use crate::stats::geometric_mean;

/// An engine's two passes in one cell.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    /// Forward alone.
    pub forward: Option<&'a Row>,
    /// Forward and backward.
    pub both: Option<&'a Row>,
}

impl<'a> Line<'a> {
    /// Pairs the passes of the rows, in their order.
    pub fn pair(rows: &'a [Row]) -> Vec<Line<'a>> {
        let mut lines: Vec<Line> = Vec::new();
        for row in rows {
            let same = |l: &&mut Line| {
                let other = l.row();
                let key =
                    |r: &Row| (r.engine, r.rank, r.rows, r.model.clone(), r.layer.clone(), r.dtype.clone());
                key(other) == key(row)
            };
            let slot = match row.pass {
                TimedPasses::Forward => Line { forward: Some(row), both: None },
                TimedPasses::Both => Line { forward: None, both: Some(row) },
            };
            match lines.iter_mut().rev().find(same) {
                Some(line) => {
                    (line.forward, line.both) = (line.forward.or(slot.forward), line.both.or(slot.both));
                }
                None => lines.push(slot),
            }
        }
        lines
    }

    /// Returns forward and backward if it was measured, else forward.
    pub fn row(&self) -> &'a Row {
        self.both.or(self.forward).expect("a line has a row")
    }
}

/// The columns of a cell's table.
pub const COLUMNS: [&str; 12] = [
    "engine",
    "rank",
    "parameters",
    "forward",
    "× LoRA",
    "forward + backward",
    "× LoRA",
    "GB/s",
    "of copy",
    "of roof",
    "extra memory",
    "error",
];

/// Returns a line's cells under [`COLUMNS`].
pub fn cells(line: Line) -> [String; 12] {
    let row = line.row();
    let wrong = if row.ok { "" } else { "  WRONG" };
    [
        row.engine.name().into(),
        if row.rank == 0 { "–".into() } else { row.rank.to_string() },
        count(row.params),
        time(line.forward),
        times(line.forward.and_then(|r| r.speedup)),
        time(line.both),
        times(line.both.and_then(|r| r.speedup)),
        row.gbps.map_or("–".into(), crate::format::digits),
        share(row, row.copy_fraction),
        share(row, row.roof_fraction),
        bytes(row.extra_bytes),
        format!("{}{wrong}", error(row.rel_error)),
    ]
}

/// Formats a median, or the reason why the cell was not timed.
fn time(row: Option<&Row>) -> String {
    match row {
        Some(row) if row.median_s.is_none() => format!("– ({})", if row.ok { "time up" } else { "wrong" }),
        row => seconds(row.and_then(|r| r.median_s)),
    }
}

/// Formats a share, which exceeds one where operands come from a cache faster than from memory.
fn share(row: &Row, fraction: Option<f64>) -> String {
    let cached = row.copy_fraction.is_some_and(|copy| copy > 1.0) && fraction.is_some_and(|f| f > 1.0);
    format!("{}{}", percent(fraction), if cached { " (cached)" } else { "" })
}

/// Formats one cell's table, with its title.
pub fn cell(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut table = plain(&COLUMNS);
    table.add_rows(Line::pair(rows).into_iter().map(cells));
    format!("{}\n{table}\n", title(first))
}

/// Formats a cell's layer, dtype and rows.
pub fn title(row: &Row) -> String {
    let Row { model, layer, d_out, d_in, dtype, rows, .. } = row;
    format!("{model} {layer} {d_out}×{d_in} · {dtype} · {rows} row{}", if *rows == 1 { "" } else { "s" })
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The geometric means of every engine's ratio to LoRA: over all cells, over
/// those of at least 256 rows, and over those of one row.
pub struct Means {
    /// The engine.
    pub engine: Kind,
    /// True for equal rank, false for LoRA at equal parameters.
    pub equal_rank: bool,
    /// Forward: all, many rows, one row.
    pub forward: [Option<f64>; 3],
    /// Both passes: all, many rows, one row.
    pub both: [Option<f64>; 3],
}

/// Returns the means over a record, in the order of `engines.toml`.
pub fn means(record: &Record) -> Vec<Means> {
    let mut list = Vec::new();
    for engine in Kind::ALL {
        for equal_rank in [true, false] {
            let own =
                |r: &&Row| r.engine == engine && (r.rank == record.meta.rank || r.rank == 0) == equal_rank;
            if !record.rows.iter().any(|r| own(&r)) {
                continue;
            }
            let mean = |pass: TimedPasses, wanted: fn(usize) -> bool| {
                let rows = record.rows.iter().filter(own).filter(|r| r.pass == pass && wanted(r.rows));
                geometric_mean(rows.filter_map(|r| r.speedup))
            };
            let three = |pass| [mean(pass, |_| true), mean(pass, |n| n >= 256), mean(pass, |n| n == 1)];
            list.push(Means {
                engine,
                equal_rank,
                forward: three(TimedPasses::Forward),
                both: three(TimedPasses::Both),
            });
        }
    }
    list
}

/// The columns of the summary.
pub const SUMMARY: [&str; 7] = [
    "engine, × LoRA (geometric mean)",
    "forward",
    "≥ 256 rows",
    "1 row",
    "forward + backward",
    "≥ 256 rows",
    "1 row",
];

/// Returns a line of the summary under [`SUMMARY`].
pub fn summary_cells(m: &Means) -> [String; 7] {
    let name =
        if m.equal_rank { m.engine.name().into() } else { format!("{}, equal parameters", m.engine.name()) };
    let ([f0, f1, f2], [b0, b1, b2]) = (m.forward.map(times), m.both.map(times));
    [name, f0, f1, f2, b0, b1, b2]
}

/// Formats the summary over all cells, the roof and the noise floor.
pub fn summary(record: &Record) -> String {
    let mut table = plain(&SUMMARY);
    table.add_rows(means(record).iter().map(summary_cells));
    let wrong: Vec<String> = record.rows.iter().filter(|r| !r.ok).map(|r| describe(r, "wrong")).collect();
    let untimed = record.rows.iter().filter(|r| r.ok && r.median_s.is_none());
    let untimed: Vec<String> = untimed.map(|r| describe(r, "not timed: the time was up")).collect();
    let notes = [wrong, untimed].concat().concat();
    format!("{table}\n{}\n{notes}", conditions(record))
}

fn describe(r: &Row, what: &str) -> String {
    let pass = r.pass.name();
    format!("{}, {} {} {} {} rows {pass}: {what}\n", r.engine.name(), r.model, r.layer, r.dtype, r.rows)
}

/// Describes the machine, the roof and the noise floor in one line.
pub fn conditions(record: &Record) -> String {
    let m = &record.meta;
    let rates: Vec<String> = m
        .roof
        .flops_per_s
        .iter()
        .map(|r| format!("{:.0} Gflop/s {}", r.flops_per_s / 1e9, r.dtype))
        .collect();
    let noise = match (m.noise_floor.median, m.noise_floor.worst) {
        (Some(median), Some(worst)) => {
            format!("{} median, {} worst", percent(Some(median)), percent(Some(worst)))
        }
        _ => "not measured".into(),
    };
    format!(
        "{}, {} thread{}, {}: copy {:.1} GB/s, {}; noise floor {noise}; {:.0} s",
        m.machine.cpu,
        m.threads,
        if m.threads == 1 { "" } else { "s" },
        m.isa,
        m.roof.copy_bytes_per_s / 1e9,
        rates.join(", "),
        m.seconds
    )
}

/// Formats the Markdown table: `kron-fused` against `lora-gemm`.
pub fn markdown(record: &Record) -> String {
    let mut out = String::from(
        "| layer | dtype | rows | LoRA forward | Kron-LoRA forward | × | LoRA forward + backward | Kron-LoRA forward + backward | × |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for line in Line::pair(&record.rows) {
        let row = line.row();
        if row.engine != Kind::KronFused {
            continue;
        }
        let lora = |own: Option<&Row>| {
            own.and_then(|own| {
                let rival =
                    |r: &&Row| r.engine == Kind::LoraGemm && r.rank == record.meta.rank && r.same_cell(own);
                record.rows.iter().find(rival)?.median_s
            })
        };
        let [f, b] = [line.forward, line.both].map(|own| {
            let kron = own.and_then(|r| r.median_s);
            format!("{} | {} | {}", seconds(lora(own)), seconds(kron), times(own.and_then(|r| r.speedup)))
        });
        out += &format!(
            "| {} {} {}×{} | {} | {} | {f} | {b} |\n",
            row.model, row.layer, row.d_out, row.d_in, row.dtype, row.rows
        );
    }
    let m = &record.meta;
    let day = m.date.get(..10).unwrap_or(&m.date);
    out + &format!("\n{day}, commit {}, {}; {}.\n", m.machine.commit, m.machine.rustc, conditions(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, row};

    #[test]
    fn a_table_shows_both_passes_in_one_line_and_names_a_wrong_engine() {
        let record = record(vec![
            row(Kind::LoraGemm, 8, TimedPasses::Forward, Some(0.002)),
            row(Kind::LoraGemm, 8, TimedPasses::Both, Some(0.006)),
            row(Kind::KronFused, 8, TimedPasses::Forward, Some(0.001)),
            row(Kind::KronFused, 8, TimedPasses::Both, Some(0.004)),
            row(Kind::KronDense, 8, TimedPasses::Both, None),
            Row { ok: true, ..row(Kind::KronUnfused, 8, TimedPasses::Both, None) },
            Row { copy_fraction: Some(1.78), ..row(Kind::LoraFused, 8, TimedPasses::Both, Some(0.001)) },
        ]);
        let text = cell(&record.rows);
        for (engine, said) in
            [("kron-dense", "– (wrong)"), ("kron-unfused", "– (time up)"), ("lora-fused", "178 % (cached)")]
        {
            assert!(text.lines().any(|l| l.contains(engine) && l.contains(said)), "{engine}: {text}");
        }
        let fused = text.lines().find(|l| l.contains("kron-fused")).unwrap();
        assert!(fused.contains("1.00 ms") && fused.contains("2.00×") && fused.contains("1.50×"), "{text}");
        assert!(text.lines().any(|l| l.contains("kron-dense") && l.contains("WRONG")), "{text}");
        let text = summary(&record);
        assert!(text.contains("kron-dense, mistral-7b q f32 256 rows forward+backward: wrong"), "{text}");
        let text = markdown(&record);
        assert!(text.contains("| 2.00 ms | 1.00 ms | 2.00× | 6.00 ms | 4.00 ms | 1.50× |"), "{text}");
    }
}
