//! HTML pages that need no other file.

use plotters::prelude::*;

use crate::config::Config;
use crate::error::{Result, invalid};
use crate::run::{Look, Row};

const SIZE: (u32, u32) = (900, 420);

/// A named curve.
pub struct Curve<'a> {
    /// What it is.
    pub name: &'a str,
    /// (x, y), by x.
    pub points: Vec<(f64, f64)>,
}

/// The page of one run: loss and rate over the steps, every look at a set, all settings.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn run(config: &Config, method: &str, rows: &[Row], looks: &[Look]) -> Result<String> {
    let of = |f: fn(&Row) -> f64| rows.iter().map(|row| (row.step as f64, f(row))).collect();
    let loss = Curve { name: "training loss", points: of(|row| row.loss.into()) };
    let held = looks.iter().filter(|look| look.split == "validation");
    let held = Curve { name: "validation loss", points: held.map(|l| (l.step as f64, l.loss)).collect() };
    let rate = Curve { name: "learning rate", points: of(|row| row.rate) };
    let looks: Vec<Vec<String>> = looks
        .iter()
        .map(|l| {
            let accuracy = l.accuracy.map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
            vec![l.step.to_string(), l.split.clone(), format!("{:.4}", l.loss), accuracy]
        })
        .collect();
    let parts = [
        plot("step", "loss", &[loss, held])?,
        plot("step", "rate", &[rate])?,
        table(&["step", "set", "loss", "accuracy"], &looks),
        format!("<pre>{}</pre>\n", escape(&config.text()?)),
    ];
    Ok(page(method, &parts.concat()))
}

/// A page of this title and body.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body {{ font: 15px sans-serif; margin: 2em auto; max-width: 70em }} pre {{ overflow-x: auto }} \
         td, th {{ padding: 0.2em 0.8em; text-align: right }}</style>\n<h1>{title}</h1>\n{body}</html>\n"
    )
}

/// The page of a study: a note, its table, and the grid that it ran.
pub fn study(title: &str, note: &str, (head, rows): (&[&str], &[Vec<String>]), grid: &str) -> String {
    let (note, table, settings) = (escape(note), table(head, rows), escape(grid));
    page(title, &format!("<p>{note}</p>\n{table}<pre>{settings}</pre>\n"))
}

/// A p-value as a table has it; a dash where there is none.
pub fn p_value(p: Option<f64>) -> String {
    p.filter(|p| !p.is_nan()).map_or("–".into(), |p| format!("{p:.3}"))
}

/// A table in Markdown.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let rows = rows.iter().map(|cells| line(cells.iter().map(String::as_str).collect()));
    line(head.to_vec()) + &line(vec!["---"; head.len()]) + &rows.collect::<String>()
}

/// A table; everything in it is text.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>, tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = line(head.iter().map(|cell| cell.to_string()).collect(), "th");
    let body: String = rows.iter().map(|row| line(row.clone(), "td")).collect();
    format!("<table>\n{head}{body}</table>\n")
}

/// Curves in one SVG with a line of names under it.
///
/// # Errors
/// A plot that cannot be drawn.
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
        // An axis has a length, also where there is nothing or one point.
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

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
