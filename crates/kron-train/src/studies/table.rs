//! Text of the result tables.

use kron_adapter::text::one_line;

/// Formats a p-value with three decimals, or a dash for a missing one and NaN.
pub(super) fn p_value(p: Option<f64>) -> String {
    p.filter(|p| !p.is_nan()).map_or("–".into(), |p| format!("{p:.3}"))
}

/// Renders a Markdown table; a row is one line, whatever the names in it.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", one_line(&cells.join(" | ")));
    let rows = rows.iter().map(|cells| line(cells.iter().map(String::as_str).collect()));
    line(head.to_vec()) + &line(vec!["---"; head.len()]) + &rows.collect::<String>()
}
