//! The page: charts with the spectra of all layers, each with its legend, and the table.

use kron_report::{Axis, Chart, Colour, Figure, Page, Series, Table};

use super::report::{HEADER, Report, Row, TRAINED_HEADER};
use crate::{Error, Result};

/// Smaller values, relative to the largest, are noise of float32 factors.
const FLOOR: f64 = 1e-8;

/// Makes a page that needs no other file.
pub fn page(report: &Report) -> Result<String> {
    let top = report.layers.iter().flat_map(|row| &row.spectrum).fold(0.0f64, |most, v| most.max(*v));
    let spectrum = |chart: Chart, row: &&Row| {
        let points = row.spectrum.iter().enumerate().map(|(k, v)| (k as f64 + 1.0, *v));
        chart.series(Series::line(&row.module, points.take_while(|(_, v)| *v > top * FLOOR)))
    };
    let mut layers: Vec<&Row> = report.layers.iter().collect();
    // Layers of one kind beside each other.
    layers.sort_by_key(|row| kind(row));
    // No colour stands for two layers of a chart.
    let spectra = layers.chunks(Colour::DISTINCT).map(|rows| {
        let one_kind = rows.iter().all(|row| kind(row) == kind(rows[0]));
        let title = if one_kind { kind(rows[0]) } else { "" };
        let axes = Chart::new(Axis::linear("index").whole(), Axis::log("singular value"));
        rows.iter().fold(axes.title(title), spectrum)
    });
    let spectra = Figure::new("Singular values of ΔW, one line for each layer, from the factors.", spectra);
    let shares = report.layers.iter().filter_map(|row| Some(row.effective_rank? / row.max_rank as f64));
    let page = Page::new(&report.path)
        .summary(report.summary())
        .section("Spectrum")
        .figure(spectra)
        .chart(
            "Layers by their effective rank as a share of the largest that their shape allows.",
            Chart::histogram(Axis::linear("effective rank / largest rank"), "layers", shares),
        )
        .section("Layers")
        .table(Table::new(HEADER, report.rows()));
    let page = match report.trained_tensors.is_empty() {
        true => page,
        false => page.section("Trained tensors").table(Table::new(TRAINED_HEADER, report.trained_rows())),
    };
    let page = report.notes.iter().fold(page, Page::note);
    page.html().map_err(|e| Error::data(format!("the page cannot be made: {e}")))
}

/// Returns the last component of a layer's name, such as `q_proj`.
fn kind(row: &Row) -> &str {
    row.module.rsplit('.').next().unwrap_or_default()
}
