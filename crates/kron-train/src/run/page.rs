//! HTML page of one run.

use super::records::{Evaluation, StepRecord};
use crate::config::Config;
use crate::error::Result;
use crate::report::{Curve, page, plot, preformatted, table};

/// Renders loss and learning rate over the steps, every evaluation, and all settings.
///
/// # Errors
/// A plot cannot be drawn.
pub(super) fn run_page(
    config: &Config,
    method: &str,
    steps: &[StepRecord],
    evaluations: &[Evaluation],
) -> Result<String> {
    let points = |f: fn(&StepRecord) -> f64| steps.iter().map(|step| (step.step as f64, f(step))).collect();
    let loss = Curve { name: "training loss", points: points(|step| step.loss.into()) };
    let validation = evaluations.iter().filter(|e| e.split == "validation");
    let validation =
        Curve { name: "validation loss", points: validation.map(|e| (e.step as f64, e.loss)).collect() };
    let lr = Curve { name: "learning rate", points: points(|step| step.lr) };
    let rows: Vec<Vec<String>> = evaluations
        .iter()
        .map(|e| {
            let accuracy = e.accuracy.map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
            vec![e.step.to_string(), e.split.clone(), format!("{:.4}", e.loss), accuracy]
        })
        .collect();
    let parts = [
        plot("step", "loss", &[loss, validation])?,
        plot("step", "learning rate", &[lr])?,
        table(&["step", "set", "loss", "accuracy"], &rows),
        preformatted(&config.text()?),
    ];
    Ok(page(method, &parts.concat()))
}
