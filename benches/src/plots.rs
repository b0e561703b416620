//! The report's pictures, as SVG text.

use std::error::Error;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::engines::Kind;
use crate::format::{digits, seconds};
use crate::problem::Pass;
use crate::record::{Record, Row};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const PANEL: (u32, u32) = (560, 330);

/// Panels side by side.
const COLUMNS: usize = 2;
const FONT: &str = "sans-serif";

/// A picture and what it shows.
pub struct Picture {
    /// One sentence.
    pub caption: String,
    /// The SVG element.
    pub svg: String,
}

/// Every picture of a record: time against rows, parameters against time, roofline.
///
/// # Errors
/// What the plotting library refuses.
pub fn all(record: &Record) -> Result<Vec<Picture>, Box<dyn Error>> {
    let mut pictures = Vec::new();
    let pass = if record.rows.iter().any(|r| r.pass == Pass::Both) { Pass::Both } else { Pass::Forward };
    let timed: Vec<&Row> = record.rows.iter().filter(|r| r.pass == pass && r.median_s.is_some()).collect();
    for (model, dtype) in distinct(&timed, |r| (r.model.clone(), r.dtype.clone())) {
        let here: Vec<&Row> =
            timed.iter().copied().filter(|r| r.model == model && r.dtype == dtype).collect();
        let layers = distinct(&here, |r| r.layer.clone());
        let panel = |layer: &str| here.iter().copied().filter(|r| r.layer == layer).collect::<Vec<_>>();
        let panels: Vec<(String, Vec<&Row>)> = layers.iter().map(|l| (l.clone(), panel(l))).collect();
        pictures.push(Picture {
            caption: format!("{model}, {dtype}: seconds of {} against rows; lower is better.", pass.name()),
            svg: draw(panels.len(), |i, area| time_against_rows(record, area, &panels[i].0, &panels[i].1))?,
        });
        pictures.push(Picture {
            caption: format!("{model}, {dtype}: seconds of {} against parameters, most rows.", pass.name()),
            svg: draw(panels.len(), |i, area| parameters_against_time(area, &panels[i].0, &panels[i].1))?,
        });
    }
    let dtypes = distinct(&timed, |r| r.dtype.clone());
    pictures.push(Picture {
        caption:
            "Roofline: Gflop/s against flops per byte of the ideal algorithm; the line is the measured roof."
                .into(),
        svg: draw(dtypes.len(), |i, area| {
            let rows: Vec<&Row> = timed.iter().copied().filter(|r| r.dtype == dtypes[i]).collect();
            roofline(record, area, &dtypes[i], &rows)
        })?,
    });
    Ok(pictures)
}

fn draw(panels: usize, each: impl Fn(usize, &Area) -> Drawn) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let columns = panels.clamp(1, COLUMNS);
        let lines = panels.max(1).div_ceil(columns);
        let size = (PANEL.0 * columns as u32, PANEL.1 * lines as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (i, area) in root.split_evenly((lines, columns)).iter().enumerate().take(panels) {
            each(i, area)?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn time_against_rows(record: &Record, area: &Area, title: &str, rows: &[&Row]) -> Drawn {
    let x = decades(rows.iter().map(|r| r.rows as f64));
    let y = decades(rows.iter().filter_map(|r| r.median_s));
    let mut chart = ChartBuilder::on(area);
    let mut chart = chart
        .caption(title, (FONT, 16))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    let (xs, ys) = (|v: &f64| digits_or_whole(*v), |v: &f64| seconds(Some(*v)));
    chart.configure_mesh().x_desc("rows").x_label_formatter(&xs).y_label_formatter(&ys).draw()?;
    for (engine, rank) in distinct(rows, |r| (r.engine, r.rank)) {
        let mine = rows.iter().filter(|r| (r.engine, r.rank) == (engine, rank));
        let line: Vec<(f64, f64)> = mine.filter_map(|r| Some((r.rows as f64, r.median_s?))).collect();
        let style = colour(engine, rank == 0 || rank == record.meta.rank).stroke_width(2);
        chart.draw_series(LineSeries::new(line.iter().copied(), style))?;
        chart.draw_series(line.iter().map(|&p| Circle::new(p, 3, style.filled())))?;
    }
    Ok(())
}

fn parameters_against_time(area: &Area, title: &str, rows: &[&Row]) -> Drawn {
    let most = rows.iter().map(|r| r.rows).max().unwrap_or(0);
    let rows: Vec<&Row> = rows.iter().copied().filter(|r| r.rows == most && r.params > 0).collect();
    let x = decades(rows.iter().map(|r| r.params as f64));
    let y = decades(rows.iter().filter_map(|r| r.median_s));
    let mut chart = ChartBuilder::on(area);
    let mut chart = chart
        .caption(format!("{title}, {most} rows"), (FONT, 16))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    let (xs, ys) = (|v: &f64| thousands(*v), |v: &f64| seconds(Some(*v)));
    chart
        .configure_mesh()
        .x_desc("parameters")
        .x_labels(5)
        .x_label_formatter(&xs)
        .y_label_formatter(&ys)
        .draw()?;
    chart.draw_series(rows.iter().filter_map(|r| {
        Some(Circle::new((r.params as f64, r.median_s?), 5, colour(r.engine, true).filled()))
    }))?;
    Ok(())
}

fn roofline(record: &Record, area: &Area, dtype: &str, rows: &[&Row]) -> Drawn {
    let points: Vec<(Kind, f64, f64)> = rows
        .iter()
        .filter_map(|r| {
            let median = r.median_s?;
            Some((r.engine, r.flops / (r.gbps? * 1e9 * median), r.flops / median / 1e9))
        })
        .collect();
    let (copy, peak) = (record.meta.roof.copy_bytes_per_s / 1e9, record.meta.roof.flops(dtype) / 1e9);
    let x = decades(points.iter().map(|p| p.1).chain([peak / copy]));
    let y = decades(points.iter().map(|p| p.2).chain([peak]));
    let (left, right) = (x.start, x.end);
    let mut chart = ChartBuilder::on(area);
    let mut chart = chart
        .caption(dtype, (FONT, 16))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    let (xs, ys) = (|v: &f64| digits_or_whole(*v), |v: &f64| digits_or_whole(*v));
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("flops per byte").y_desc("Gflop/s").x_label_formatter(&xs).y_label_formatter(&ys).draw()?;
    let roof = [(left, left * copy), (peak / copy, peak), (right, peak)];
    chart.draw_series(LineSeries::new(roof, BLACK.stroke_width(2)))?;
    chart.draw_series(
        points.iter().map(|&(engine, x, y)| Circle::new((x, y), 3, colour(engine, true).filled())),
    )?;
    Ok(())
}

fn colour(engine: Kind, strong: bool) -> RGBAColor {
    let hex = u32::from_str_radix(engine.info().colour.trim_start_matches('#'), 16).unwrap_or(0);
    RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8).mix(if strong { 1.0 } else { 0.45 })
}

/// From half the least to twice the most, and never empty.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let positive = values.filter(|v| v.is_finite() && *v > 0.0);
    let (low, high) = positive.fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
    if high > 0.0 { low / 2.0..high * 2.0 } else { 0.1..10.0 }
}

fn thousands(v: f64) -> String {
    if v < 1e6 { format!("{} k", v / 1e3) } else { format!("{} M", v / 1e6) }
}

fn digits_or_whole(v: f64) -> String {
    if v >= 1.0 && v.fract() == 0.0 { crate::format::count(v as usize) } else { digits(v) }
}

/// The values of `key` in order of first appearance.
fn distinct<K: PartialEq>(rows: &[&Row], key: impl Fn(&Row) -> K) -> Vec<K> {
    let mut seen = Vec::new();
    for row in rows {
        let k = key(row);
        if !seen.contains(&k) {
            seen.push(k);
        }
    }
    seen
}
