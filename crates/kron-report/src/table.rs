//! Tables.

use crate::text::clean;

/// A table of text. Columns of numbers are set to the right.
///
/// # Examples
/// ```
/// use kron_report::{Page, Table};
///
/// let table = Table::new(["engine", "time", "error"], [["fused", "4 ms", "1e-7"], ["dense", "–", "1.2 WRONG"]])
///     .caption("Forward, 256 rows")
///     .alert(|cells| cells.iter().any(|c| c.contains("WRONG")));
/// assert!(Page::new("Bench").table(table).html()?.contains("<th scope=\"col\""));
/// # Ok::<(), kron_report::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub(crate) caption: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Row>,
    numeric: Vec<bool>,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub cells: Vec<String>,
    pub alert: bool,
}

impl Table {
    /// Makes a table; each row's first cell is its header.
    pub fn new<H, R>(head: H, rows: R) -> Self
    where
        H: IntoIterator<Item: Into<String>>,
        R: IntoIterator<Item: IntoIterator<Item: Into<String>>>,
    {
        let texts = |row: R::Item| row.into_iter().map(clean).collect();
        let rows: Vec<Row> = rows.into_iter().map(|row| Row { cells: texts(row), alert: false }).collect();
        let width = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        let column = |i| rows.iter().filter_map(move |row: &Row| row.cells.get(i));
        let numeric = (0..width).map(|i| column(i).all(|cell| is_number(cell))).collect();
        Self { caption: String::new(), head: head.into_iter().map(clean).collect(), rows, numeric }
    }

    /// Makes a table of names and values, without a head.
    pub fn facts<N: Into<String>, V: Into<String>>(facts: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut table =
            Self::new([""; 0], facts.into_iter().map(|(name, value)| [name.into(), value.into()]));
        table.numeric.clear();
        table
    }

    /// Sets the line above the table.
    pub fn caption(self, caption: impl Into<String>) -> Self {
        Self { caption: clean(caption), ..self }
    }

    /// Marks the rows for which `bad` holds. The text has to name the reason too: a colour alone tells not everyone.
    pub fn alert(mut self, bad: impl Fn(&[String]) -> bool) -> Self {
        self.rows.iter_mut().for_each(|row| row.alert = bad(&row.cells));
        self
    }

    pub(crate) fn is_numeric(&self, column: &usize) -> bool {
        self.numeric.get(*column).copied().unwrap_or(false)
    }
}

/// Returns true for a number with or without a unit, for an empty cell, and for a dash with or without
/// its reason.
fn is_number(cell: &str) -> bool {
    let digits = cell.trim_start_matches(['+', '-', '−']);
    cell.is_empty() || cell.starts_with('–') || digits.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_numbers_are_found() {
        let rows = [["4×4", "1 ms", "–", "x1", "-2"], ["a", "– (not timed)", "3.5", "2", "not a number"]];
        let table = Table::new(["a", "b", "c", "d", "e"], rows);
        assert_eq!(table.numeric, [false, true, true, false, false]);
    }
}
