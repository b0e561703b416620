//! Tables from lists of columns, and CSV from the rows' fields.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::{Error, Result};

/// One column of a table.
pub struct Column<T> {
    /// Heading.
    pub head: &'static str,
    /// True for numbers, which are aligned right.
    pub number: bool,
    /// Returns the text of a row's cell.
    pub cell: fn(&T) -> String,
}

/// Columns of a terminal.
const WIDTH: usize = 80;

/// Draws a table, without spaces beside the bars where they would make it wider than a terminal.
pub fn table<T>(columns: &[Column<T>], rows: &[T]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(columns.iter().map(|column| align(column, column.head.into())));
    let cells = |row| columns.iter().map(|column| align(column, (column.cell)(row))).collect::<Vec<_>>();
    table.add_rows(rows.iter().map(cells));
    let drawn = table.trim_fmt();
    if drawn.lines().all(|line| line.chars().count() <= WIDTH) {
        return drawn;
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 0));
    });
    table.trim_fmt()
}

fn align<T>(column: &Column<T>, text: String) -> Cell {
    let cell = Cell::new(text);
    if column.number { cell.set_alignment(CellAlignment::Right) } else { cell }
}

/// Writes rows as CSV (RFC 4180, lines ended by `\n`, without the last one). The first line holds the
/// names of the fields.
///
/// # Errors
/// A row has a field that CSV cannot hold.
pub fn csv<T: Serialize>(rows: impl IntoIterator<Item = T>) -> Result<String> {
    let refused = |e: &dyn std::fmt::Display| Error::data(format!("the result has no CSV form: {e}"));
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(|e| refused(&e))?;
    }
    let bytes = writer.into_inner().map_err(|e| refused(&e))?;
    let text = String::from_utf8(bytes).map_err(|e| refused(&e))?;
    Ok(text.trim_end_matches('\n').into())
}
