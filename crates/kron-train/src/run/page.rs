//! HTML page of one run.

use kron_report::{Axis, Chart, Page, Series, Table};

use super::records::{Evaluation, StepRecord};
use crate::config::Config;
use crate::error::Result;
use crate::report::html;

/// Renders loss and learning rate over the steps, every evaluation, and all settings.
///
/// # Errors
/// Fails if the page cannot be made.
pub(super) fn run_page(
    config: &Config,
    method: &str,
    steps: &[StepRecord],
    evaluations: &[Evaluation],
) -> Result<String> {
    let chart = |y: &str| Chart::new(Axis::linear("step").whole(), Axis::linear(y));
    let points = |value: fn(&StepRecord) -> f64| steps.iter().map(move |s| (s.step as f64, value(s)));
    let validation = evaluations.iter().filter(|e| e.split == "validation").map(|e| (e.step as f64, e.loss));
    let loss = chart("loss")
        .series(Series::line("training loss", points(|step| step.loss.into())))
        .series(Series::line("validation loss", validation));
    let lr = chart("learning rate").series(Series::line("learning rate", points(|step| step.lr)));
    let rows = evaluations.iter().map(|e| {
        let accuracy = e.accuracy.map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
        [e.step.to_string(), e.split.clone(), format!("{:.4}", e.loss), accuracy]
    });
    let page = Page::new(method)
        .chart("Loss over the steps; lower is better.", loss)
        .chart("Learning rate over the steps.", lr)
        .section("Evaluations")
        .table(Table::new(["step", "set", "loss", "accuracy"], rows))
        .section("Settings")
        .code(config.text()?);
    html(&page)
}
