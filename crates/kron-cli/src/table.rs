//! Tables that commands print.

use comfy_table::{CellAlignment, Table, presets};
use kron_adapter::text::one_line;

/// Draws a table without frames. The first `text` columns are aligned left, the others right.
pub fn table(header: &[&str], text: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    rows.into_iter().for_each(|row| {
        table.add_row(row.iter().map(|cell| one_line(cell)));
    });
    for (i, column) in table.column_iter_mut().enumerate() {
        let side = if i < text { CellAlignment::Left } else { CellAlignment::Right };
        column.set_padding((0, 2)).set_cell_alignment(side);
    }
    table.trim_fmt()
}

/// Writes a number with four significant digits.
pub fn short(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e5).contains(&size) => {
            let decimals = 3 - size.log10().floor() as i32;
            format!("{v:.*}", decimals.max(0) as usize)
        }
        _ => format!("{v:.3e}"),
    }
}
