//! Tables, chart and page of a comparison.

use kron_report::{Axis, Chart, Page, Series, Table};

use super::grid::ComparisonGrid;
use super::summary::{EntrySummary, summarise};
use super::trial::Trial;
use crate::error::{Result, invalid};
use crate::report;
use crate::studies::stats::{Spread, deviation, interval, mean};
use crate::studies::table::{markdown as markdown_table, p_value};

/// Head and rows of a table.
type Cells = (Vec<&'static str>, Vec<Vec<String>>);

/// Unit of scores in tables: percent, or nats for losses, which are negative scores.
struct Unit {
    factor: f64,
    decimals: usize,
}

impl Unit {
    fn of(is_loss: bool) -> Self {
        match is_loss {
            true => Self { factor: -1.0, decimals: 4 },
            false => Self { factor: 100.0, decimals: 2 },
        }
    }

    fn value(&self, score: f64) -> f64 {
        self.factor * score
    }

    fn text(&self, score: f64) -> String {
        number(format!("{:.*}", self.decimals, self.value(score)))
    }

    fn signed(&self, score: f64) -> String {
        number(format!("{:+.*}", self.decimals, self.value(score)))
    }

    /// Returns the ends in the order of their values in this unit.
    fn range(&self, (low, high): (f64, f64)) -> (f64, f64) {
        if self.factor < 0.0 {
            (self.value(high), self.value(low))
        } else {
            (self.value(low), self.value(high))
        }
    }

    fn range_text(&self, ends: (f64, f64)) -> String {
        let (low, high) = self.range(ends);
        match low.is_nan() || high.is_nan() {
            true => "–".into(),
            false => format!("{low:.0$} … {high:.0$}", self.decimals),
        }
    }
}

fn number(text: String) -> String {
    if text.contains("NaN") { "–".into() } else { text }
}

/// Makes the table of entries: score over the seeds, and cost.
fn cells(summaries: &[EntrySummary]) -> Cells {
    let head = [
        "entry",
        "method",
        "parameters",
        "learning rate",
        "seeds",
        "test",
        "sd",
        "95 % interval",
        "p",
        "ms a step",
        "CPU ms a step",
        "peak MiB",
    ];
    let row = |summary: &EntrySummary| {
        let unit = Unit::of(summary.is_loss);
        let values: Vec<f64> = summary.test.iter().map(|(_, v)| *v).collect();
        let milliseconds = |s: Option<f64>| s.map_or("–".into(), |s| format!("{:.0}", 1000.0 * s));
        vec![
            summary.name.clone(),
            summary.method.clone(),
            summary.params.to_string(),
            format!("{:e}", summary.lr),
            values.len().to_string(),
            unit.text(mean(&values)),
            number(format!("{:.*}", unit.decimals, unit.factor.abs() * deviation(&values))),
            unit.range_text(interval(&values)),
            p_value(summary.p),
            milliseconds(summary.step_seconds),
            milliseconds(summary.step_cpu_seconds),
            summary.peak_mib.map_or("–".into(), |mib| format!("{mib:.0}"))
                + &summary.device_mib.map_or(String::new(), |mib| format!(", GPU {mib}")),
        ]
    };
    (head.to_vec(), summaries.iter().map(row).collect())
}

/// Makes the table of differences from the reference, each with the smallest that the comparison finds.
fn difference_cells(summaries: &[EntrySummary]) -> Cells {
    let by_sum = summaries.iter().any(|s| s.by_sum.is_some());
    let head = ["entry", "parameters", "test"].into_iter().chain(by_sum.then_some("by sum")).chain([
        "95 % interval",
        "difference from",
        "difference",
        "95 % interval",
        "p",
        "smallest found",
    ]);
    let row = |summary: &EntrySummary| {
        let (unit, missing) = (Unit::of(summary.is_loss), || "–".to_owned());
        let of = |text: &dyn Fn(&Spread) -> String| {
            summary.difference.as_ref().map_or_else(missing, |(_, spread)| text(spread))
        };
        let first = [summary.name.clone(), summary.params.to_string(), unit.text(summary.spread.mean)];
        let sum = summary.by_sum.map_or_else(missing, |share| unit.text(share));
        let rest = [
            unit.range_text(summary.spread.interval),
            summary.difference.as_ref().map_or_else(missing, |(name, _)| name.clone()),
            of(&|spread| unit.signed(spread.mean)),
            of(&|spread| unit.range_text(spread.interval)),
            of(&|spread| p_value(Some(spread.p))),
            of(&|spread| number(format!("{:.*}", unit.decimals, unit.factor.abs() * spread.detectable))),
        ];
        first.into_iter().chain(by_sum.then_some(sum)).chain(rest).collect()
    };
    (head.collect(), summaries.iter().map(row).collect())
}

/// Renders the result as a Markdown table.
pub fn markdown(summaries: &[EntrySummary]) -> String {
    let (head, rows) = cells(summaries);
    markdown_table(&head, &rows)
}

/// Renders the differences from the reference as a Markdown table.
pub fn differences(summaries: &[EntrySummary]) -> String {
    let (head, rows) = difference_cells(summaries);
    markdown_table(&head, &rows)
}

/// Explains the table of entries, and names the entries whose best learning rate has none tried on one side.
fn note(grid: &ComparisonGrid, trials: &[Trial], summaries: &[EntrySummary]) -> String {
    let unfinished = grid.unfinished(trials).map_or(String::new(), |done| format!("Incomplete: {done}. "));
    let unit = match summaries.iter().any(|s| s.is_loss) {
        true => "Loss in nats per token",
        false => "Accuracy in percent",
    };
    let open: Vec<&str> =
        summaries.iter().filter(|s| !s.bracketed && s.params > 0).map(|s| s.name.as_str()).collect();
    let open = match open.is_empty() {
        true => String::new(),
        false => format!(
            " The best learning rate is the lowest or the highest that was tried: {}.",
            open.join(", ")
        ),
    };
    format!(
        "{unfinished}{unit}. Each entry has the learning rate with the best mean on the validation set; p is the p-value \
         of a paired t-test over the seeds against {}.{open}",
        grid.reference
    )
}

/// Explains the table of differences.
fn difference_note(trials: &[Trial]) -> &'static str {
    match trials.iter().any(|t| t.right.is_some()) {
        true => {
            "Intervals and p resample the seeds and the test examples together, 10,000 times, with the same examples on \
             both sides. The last column is the smallest true difference that such a comparison finds (p < 0.05) four \
             times out of five."
        }
        false => {
            "Intervals and p are those of Student's distribution over the seeds, paired by seed. The last column is the \
             smallest true difference that such a comparison finds (p < 0.05) four times out of five."
        }
    }
}

/// Draws test scores over the number of parameters, a line for each curve.
fn chart(summaries: &[EntrySummary]) -> Chart {
    let is_loss = summaries.iter().any(|s| s.is_loss);
    let unit = Unit::of(is_loss);
    let label = if is_loss { "test loss, nats per token" } else { "test accuracy, %" };
    let mut names: Vec<&str> = summaries.iter().map(|s| s.entry.as_str()).collect();
    names.dedup();
    let series = |name: &str| {
        let own = || summaries.iter().filter(move |s| s.entry == name);
        let points = own().map(|s| (s.params as f64, unit.value(s.spread.mean)));
        // Without an interval, the bar has no length.
        let bar = |s: &EntrySummary| {
            let (low, high) = unit.range(s.spread.interval);
            let mean = unit.value(s.spread.mean);
            if low.is_nan() { (mean, mean) } else { (low, high) }
        };
        Series::line(name, points).error_bars(own().map(bar))
    };
    let axes = Chart::new(Axis::log("trained parameters"), Axis::linear(label));
    names.into_iter().map(series).fold(axes, Chart::series)
}

/// Draws the chart as the text of an SVG file.
///
/// # Errors
/// The chart cannot be drawn.
pub fn chart_file(summaries: &[EntrySummary]) -> Result<String> {
    chart(summaries).svg_file().map_err(|e| invalid(e.to_string()))
}

/// Renders both tables with their explanations as Markdown.
pub(super) fn tables(grid: &ComparisonGrid, trials: &[Trial]) -> String {
    let summaries = summarise(grid, trials);
    let (note, second) = (note(grid, trials, &summaries), difference_note(trials));
    format!("{note}\n\n{}\n{second}\n\n{}", markdown(&summaries), differences(&summaries))
}

/// Renders the page.
///
/// # Errors
/// The page cannot be made.
pub(super) fn html(grid: &ComparisonGrid, trials: &[Trial]) -> Result<String> {
    let summaries = summarise(grid, trials);
    let table = |(head, rows): Cells| Table::new(head, rows);
    let page = Page::new("Methods compared")
        .summary(note(grid, trials, &summaries))
        .table(table(cells(&summaries)))
        .section(format!("Differences from {}", grid.reference))
        .text(difference_note(trials))
        .table(table(difference_cells(&summaries)))
        .chart("Test scores over trained parameters; bars are 95 % intervals.", chart(&summaries))
        .section("Grid")
        .code(grid.text()?);
    report::html(&page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_shown_as_they_are_and_their_ends_in_order() {
        let (loss, accuracy) = (Unit::of(true), Unit::of(false));
        assert_eq!((loss.text(-3.21987), accuracy.text(0.8125)), ("3.2199".into(), "81.25".into()));
        assert_eq!((loss.signed(-0.0123), loss.signed(0.5)), ("+0.0123".into(), "-0.5000".into()));
        assert_eq!(loss.range_text((-3.5, -3.25)), "3.2500 … 3.5000");
        assert_eq!(accuracy.range_text((0.25, 0.5)), "25.00 … 50.00");
        assert_eq!((loss.text(f64::NAN), loss.range_text((f64::NAN, 1.0))), ("–".into(), "–".into()));
    }

    #[test]
    fn a_table_of_differences_has_a_row_for_each_entry_and_dashes_for_the_reference() {
        let spread =
            |mean: f64| Spread { mean, interval: (mean - 0.02, mean + 0.02), p: 0.25, detectable: 0.03 };
        let reference = EntrySummary {
            name: "lora".into(),
            entry: "lora".into(),
            budget: None,
            method: "lora r 8".into(),
            params: 800,
            lr: 1e-3,
            bracketed: true,
            is_loss: false,
            test: vec![(1, 0.8)],
            by_sum: None,
            spread: spread(0.8),
            p: None,
            difference: None,
            step_seconds: None,
            step_cpu_seconds: None,
            peak_mib: None,
            device_mib: None,
        };
        let other = EntrySummary {
            name: "kron".into(),
            params: 200,
            by_sum: Some(0.7),
            spread: spread(0.75),
            difference: Some(("lora".into(), spread(-0.05))),
            ..reference.clone()
        };
        let both = [reference, other];
        let lines = differences(&both);
        let rows: Vec<&str> = lines.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| lora | 800 | 80.00 | – | 78.00 … 82.00 | – | – | – | – | – |",
                "| kron | 200 | 75.00 | 70.00 | 73.00 … 77.00 | lora | -5.00 | -7.00 … -3.00 | 0.250 | 3.00 |",
            ]
        );
        assert!(!differences(&both[..1]).contains("by sum"));
        let svg = chart(&both).svg().expect("a chart");
        assert!(svg.contains("test accuracy"), "{svg}");
    }
}
