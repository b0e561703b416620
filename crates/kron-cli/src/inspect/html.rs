//! The page: one chart with the spectrum of every layer, its legend, and the table.

use kron_report::{Axis, Chart, Page, Series, Table};

use super::report::{HEADER, Report};
use crate::{Error, Result};

/// Smaller values, relative to the largest, are noise of float32 factors.
const FLOOR: f64 = 1e-8;

/// Makes a page that needs no other file.
pub fn page(report: &Report) -> Result<String> {
    let top = report.layers.iter().flat_map(|row| &row.spectrum).fold(0.0f64, |most, v| most.max(*v));
    let axes = Chart::new(Axis::linear("index").whole(), Axis::log("singular value"));
    let spectra = report.layers.iter().fold(axes.numbered(), |chart, row| {
        let points = row.spectrum.iter().enumerate().map(|(k, v)| (k as f64 + 1.0, *v));
        chart.series(Series::line(&row.module, points.take_while(|(_, v)| *v > top * FLOOR)))
    });
    let shares = report.layers.iter().filter_map(|row| Some(row.effective_rank? / row.max_rank as f64));
    let page = Page::new(&report.path)
        .summary(report.summary())
        .section("Spectrum")
        .chart(
            "Singular values of ΔW, one line for each layer, from the factors; its number stands at its end.",
            spectra,
        )
        .chart(
            "Layers by their effective rank as a share of the largest that their shape allows.",
            Chart::histogram(Axis::linear("effective rank / largest rank"), "layers", shares),
        )
        .section("Layers")
        .table(Table::new(HEADER, report.rows()));
    let page = report.notes.iter().fold(page, Page::note);
    page.html().map_err(|e| Error::data(format!("the page cannot be made: {e}")))
}
