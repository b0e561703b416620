//! The page: one plot with the spectrum of every layer, its legend, and the table as text.

use plotters::prelude::*;

use super::Report;
use crate::{Error, Result};

const SIZE: (u32, u32) = (900, 480);
/// Smaller values, relative to the largest, are noise of float32 factors.
const FLOOR: f64 = 1e-8;

/// A page that needs no other file.
pub fn page(report: &Report) -> Result<String> {
    let plot = plot(report).map_err(|e| Error::data(format!("the spectrum cannot be drawn: {e}")))?;
    let legend: String = report.layers.iter().enumerate().map(|(i, row)| entry(i, &row.module)).collect();
    let title = escape(&report.path);
    let table = escape(&report.table());
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body {{ font: 15px sans-serif; margin: 2em auto; max-width: 70em }} pre {{ overflow-x: auto }}\n\
         ul {{ columns: 20em; list-style: none; padding: 0 }}</style>\n\
         <h1>{title}</h1>\n<p>Singular values of ΔW, one line for each layer, from the factors; \
         its number stands at its end.</p>\n\
         {plot}\n<ul>\n{legend}</ul>\n<pre>{table}</pre>\n</html>\n"
    ))
}

/// A layer's line in the legend: the number and the colour that it has in the plot.
fn entry(i: usize, module: &str) -> String {
    let (r, g, b) = Palette99::pick(i).rgb();
    format!("<li><b style=\"color:#{r:02X}{g:02X}{b:02X}\">{}</b> {}</li>\n", i + 1, escape(module))
}

fn plot(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let values = || report.layers.iter().flat_map(|row| &row.spectrum);
    let top = values().fold(0.0f64, |most, v| most.max(*v));
    let (top, floor) = if top > 0.0 { (top, top * FLOOR) } else { (1.0, FLOOR) };
    let low = values().copied().filter(|v| *v > floor).fold(top, f64::min);
    // Whole decades, at least one: a narrower axis gets no labels.
    let first = low.log10().floor();
    let (floor_decade, top_decade) = (10f64.powf(first), 10f64.powf(top.log10().ceil().max(first + 1.0)));
    let longest = report.layers.iter().map(|row| row.spectrum.len()).max().unwrap_or(1);

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(1f64..(longest as f64).max(2.0), (floor_decade..top_decade).log_scale())?;
        let whole = |x: &f64| if x.fract() == 0.0 { x.to_string() } else { String::new() };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_label_formatter(&whole)
            .x_desc("index")
            .y_desc("singular value")
            .draw()?;
        for (i, row) in report.layers.iter().enumerate() {
            let points = row.spectrum.iter().enumerate().map(|(k, v)| (k as f64 + 1.0, *v));
            let points: Vec<_> = points.take_while(|(_, v)| *v > floor).collect();
            let colour = Palette99::pick(i);
            // There are more layers than colours.
            let number = points.last().map(|end| {
                Text::new((i + 1).to_string(), *end, ("sans-serif", 11).into_font().color(&colour))
            });
            chart.draw_series(number)?;
            chart.draw_series(LineSeries::new(points.clone(), colour.mix(0.7)))?;
            chart.draw_series(points.into_iter().map(|p| Circle::new(p, 2, colour.filled())))?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
