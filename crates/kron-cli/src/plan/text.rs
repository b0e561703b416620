//! Tables and CSV from the same columns.

use comfy_table::{Cell, CellAlignment, Table, presets};

/// One column: its heading for a reader, its name in CSV, and its cells.
pub struct Column<T> {
    /// Heading.
    pub head: &'static str,
    /// Name in CSV.
    pub name: &'static str,
    /// Whether the cells are numbers, which stand to the right.
    pub number: bool,
    /// The cell for a reader.
    pub show: fn(&T) -> String,
    /// The cell in CSV.
    pub raw: fn(&T) -> String,
}

// Derived it would ask for a copy of the rows.
impl<T> Clone for Column<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Column<T> {}

/// A table for a reader.
pub fn table<T>(columns: &[Column<T>], rows: &[T]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(columns.iter().map(|column| align(column, column.head.into())));
    table.add_rows(
        rows.iter()
            .map(|row| columns.iter().map(|column| align(column, (column.show)(row))).collect::<Vec<_>>()),
    );
    table.trim_fmt()
}

fn align<T>(column: &Column<T>, text: String) -> Cell {
    let cell = Cell::new(text);
    if column.number { cell.set_alignment(CellAlignment::Right) } else { cell }
}

/// RFC 4180, lines ended by `\n`, without the last one.
pub fn csv<T>(columns: &[Column<T>], rows: &[T]) -> String {
    lines(
        &columns.iter().map(|column| column.name).collect::<Vec<_>>(),
        rows.iter().map(|row| cells(columns, row)),
    )
}

/// A row's cells in CSV, not quoted yet.
pub fn cells<T>(columns: &[Column<T>], row: &T) -> Vec<String> {
    columns.iter().map(|column| (column.raw)(row)).collect()
}

/// CSV of these names and rows.
pub fn lines(names: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let names = names.iter().map(ToString::to_string).collect();
    let lines = std::iter::once(names).chain(rows);
    let lines = lines.map(|cells| cells.into_iter().map(quoted).collect::<Vec<_>>().join(","));
    lines.collect::<Vec<_>>().join("\n")
}

fn quoted(cell: String) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}
