//! HTML pages of runs and studies, and their tables, from plain data.

use kron_report::{Axis, Chart, Page, Series, Table};

use crate::error::{Result, invalid};

/// An evaluation of a set.
pub struct Evaluation<'a> {
    /// Steps taken.
    pub step: u64,
    /// `validation` or `test`.
    pub split: &'a str,
    /// Mean loss.
    pub loss: f64,
    /// Share of right answers.
    pub accuracy: Option<f64>,
}

/// A run's numbers.
pub struct Run<'a> {
    /// The method with its shapes.
    pub method: &'a str,
    /// Training loss, by step.
    pub loss: Vec<(f64, f64)>,
    /// Learning rate, by step.
    pub rate: Vec<(f64, f64)>,
    /// In the order of the steps.
    pub evaluations: Vec<Evaluation<'a>>,
    /// All settings, as TOML.
    pub settings: String,
}

/// Makes the page of one run: loss and learning rate over the steps, every evaluation, all settings.
///
/// # Errors
/// Fails if the page cannot be made.
pub fn run(run: Run) -> Result<String> {
    let steps = |y: &str| Chart::new(Axis::linear("step").whole(), Axis::linear(y));
    let held = run.evaluations.iter().filter(|e| e.split == "validation").map(|e| (e.step as f64, e.loss));
    let loss = steps("loss").series(Series::line("training loss", run.loss));
    let loss = loss.series(Series::line("validation loss", held));
    let rate = steps("learning rate").series(Series::line("learning rate", run.rate));
    let evaluations = run.evaluations.iter().map(|e| {
        let accuracy = e.accuracy.map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
        [e.step.to_string(), e.split.to_owned(), format!("{:.4}", e.loss), accuracy]
    });
    let page = Page::new(run.method)
        .chart("Loss over the steps; lower is better.", loss)
        .chart("Learning rate over the steps.", rate)
        .section("Evaluations")
        .table(Table::new(["step", "set", "loss", "accuracy"], evaluations))
        .section("Settings")
        .code(run.settings);
    html(&page)
}

/// Makes the page of a study: a note, its table, and the grid that it ran.
///
/// # Errors
/// Fails if the page cannot be made.
pub fn study(title: &str, note: &str, (head, rows): (&[&str], &[Vec<String>]), grid: &str) -> Result<String> {
    let table = Table::new(head.iter().copied(), rows.iter().cloned());
    html(&Page::new(title).summary(note).table(table).section("Grid").code(grid))
}

/// Writes a page of parts.
///
/// # Errors
/// Fails if the page cannot be made.
pub fn html(page: &Page) -> Result<String> {
    page.html().map_err(|e| invalid(e.to_string()))
}

/// Writes a p-value; a dash where there is none.
pub fn p_value(p: Option<f64>) -> String {
    p.filter(|p| !p.is_nan()).map_or("–".into(), |p| format!("{p:.3}"))
}

/// Writes a table in Markdown.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let rows = rows.iter().map(|cells| line(cells.iter().map(String::as_str).collect()));
    line(head.to_vec()) + &line(vec!["---"; head.len()]) + &rows.collect::<String>()
}
