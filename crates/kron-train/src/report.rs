//! Pages of runs and studies, from the parts of kron-report.

use kron_report::{Page, Table};

use crate::error::{Result, invalid};

/// Makes the page of a study: a note, its table, and the grid that it ran.
///
/// # Errors
/// Fails if the page cannot be made.
pub fn study(title: &str, note: &str, (head, rows): (&[&str], &[Vec<String>]), grid: &str) -> Result<String> {
    let table = Table::new(head.iter().copied(), rows.iter().cloned());
    html(&Page::new(title).summary(note).table(table).section("Grid").code(grid))
}

/// Writes a page.
///
/// # Errors
/// Fails if the page cannot be made.
pub fn html(page: &Page) -> Result<String> {
    page.html().map_err(|e| invalid(e.to_string()))
}
