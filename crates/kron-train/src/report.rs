//! Self-contained HTML pages: tables, curves and preformatted text.

use plotters::prelude::*;

use crate::error::{Result, invalid};

const SIZE: (u32, u32) = (900, 420);

/// Named curve.
pub struct Curve<'a> {
    /// Label below the plot.
    pub name: &'a str,
    /// Points (x, y), sorted by x.
    pub points: Vec<(f64, f64)>,
}

/// Wraps a body of HTML into a page with this title.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body {{ font: 15px sans-serif; margin: 2em auto; max-width: 70em }} pre {{ overflow-x: auto }} \
         td, th {{ padding: 0.2em 0.8em; text-align: right }}</style>\n<h1>{title}</h1>\n{body}</html>\n"
    )
}

/// Renders the page of a study: a note, its result table, and the grid file.
pub fn study(title: &str, note: &str, (head, rows): (&[&str], &[Vec<String>]), grid: &str) -> String {
    page(title, &(paragraph(note) + &table(head, rows) + &preformatted(grid)))
}

/// Renders a paragraph of plain text.
pub fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// Renders text that keeps its lines, such as a settings file.
pub fn preformatted(text: &str) -> String {
    format!("<pre>{}</pre>\n", escape(text))
}

/// Renders a table of plain text.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>, tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = line(head.iter().map(|cell| cell.to_string()).collect(), "th");
    let body: String = rows.iter().map(|row| line(row.clone(), "td")).collect();
    format!("<table>\n{head}{body}</table>\n")
}

/// Draws curves into one SVG, with their names below.
///
/// # Errors
/// The plot cannot be drawn.
pub fn plot(x: &str, y: &str, curves: &[Curve]) -> Result<String> {
    let svg = svg(x, y, curves).map_err(|e| invalid(format!("the plot of {y} cannot be drawn: {e}")))?;
    let name = |(i, curve): (usize, &Curve)| {
        let (r, g, b) = Palette99::pick(i).rgb();
        format!("<span style=\"color: rgb({r}, {g}, {b})\">■ {}</span> ", escape(curve.name))
    };
    let names: String = curves.iter().enumerate().map(name).collect();
    Ok(format!("{svg}<p>{names}</p>\n"))
}

fn svg(x: &str, y: &str, curves: &[Curve]) -> Result<String, Box<dyn std::error::Error>> {
    let all = || curves.iter().flat_map(|c| &c.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = all().map(of).fold(f64::INFINITY, f64::min);
        let high = all().map(of).fold(f64::NEG_INFINITY, f64::max);
        // An axis needs a length even with one point or none.
        if low < high {
            low..high
        } else if low.is_finite() {
            low - 0.5..low + 0.5
        } else {
            0.0..1.0
        }
    };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(range(|p| p.0), range(|p| p.1))?;
        chart.configure_mesh().x_desc(x).y_desc(y).draw()?;
        for (i, curve) in curves.iter().enumerate() {
            let colour = Palette99::pick(i);
            chart.draw_series(LineSeries::new(curve.points.iter().copied(), colour.mix(0.8)))?;
            if curve.points.len() < 60 {
                chart.draw_series(curve.points.iter().map(|p| Circle::new(*p, 2, colour.filled())))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

/// Escapes plain text for HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
