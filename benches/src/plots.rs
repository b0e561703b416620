//! The report's charts.

use kron_report::{Axis, Bar, Chart, Colour, Figure, Series};

use crate::engines::Kind;
use crate::format::{count, digits, seconds, times};
use crate::problem::TimedPasses;
use crate::record::{Record, Row};
use crate::table::means;

/// Every figure of a record: mean ratios, time against rows, parameters against time, roofline.
pub fn all(record: &Record) -> Vec<Figure> {
    let pass = if record.rows.iter().any(|r| r.pass == TimedPasses::Both) {
        TimedPasses::Both
    } else {
        TimedPasses::Forward
    };
    let timed: Vec<&Row> = record.rows.iter().filter(|r| r.pass == pass && r.median_s.is_some()).collect();
    let mut figures = vec![ratios(record, pass)];
    for (model, dtype) in distinct(&timed, |r| (r.model.clone(), r.dtype.clone())) {
        let here = only(&timed, |r| r.model == model && r.dtype == dtype);
        let layers = distinct(&here, |r| r.layer.clone());
        let panels = |draw: &dyn Fn(&str, &[&Row]) -> Chart| -> Vec<Chart> {
            layers.iter().map(|layer| draw(layer, &only(&here, |r| r.layer == *layer))).collect()
        };
        let name = pass.name();
        figures.push(Figure::new(
            format!(
                "{model}, {dtype}: seconds of {name} against rows, with the 10 % and 90 % quantiles; lower is better."
            ),
            panels(&|layer, rows| time_against_rows(record, layer, rows)),
        ));
        figures.push(Figure::new(
            format!("{model}, {dtype}: seconds of {name} against parameters, most rows."),
            panels(&|layer, rows| parameters_against_time(record, layer, rows)),
        ));
    }
    let dtypes = distinct(&timed, |r| r.dtype.clone());
    figures.push(Figure::new(
        "Roofline: Gflop/s against flops per byte of the ideal algorithm; the line is the measured roof.",
        dtypes.iter().map(|dtype| roofline(record, dtype, &only(&timed, |r| r.dtype == *dtype))),
    ));
    figures
}

fn ratios(record: &Record, pass: TimedPasses) -> Figure {
    let bars = means(record).into_iter().filter_map(|m| {
        let value = (if pass == TimedPasses::Both { m.both } else { m.forward })[0]?;
        let (name, colour) = (name(m.engine, m.equal_rank), Some(colour(m.engine)));
        Some(Bar { name, value, range: None, colour })
    });
    let chart = Chart::bars(Axis::linear("× LoRA").format(|v| times(Some(v))), bars);
    let caption = format!("Speed of {} as a multiple of LoRA's: geometric mean over all cells.", pass.name());
    Figure::new(caption, [chart])
}

fn time_against_rows(record: &Record, layer: &str, rows: &[&Row]) -> Chart {
    let chart = Chart::new(Axis::log("rows").format(digits_or_whole), time()).title(layer);
    engines(record, chart, rows, |name, rows| {
        let points = rows.iter().filter_map(|r| Some((r.rows as f64, r.median_s?)));
        let quantiles = rows.iter().map(|r| (r.q10_s.unwrap_or(f64::NAN), r.q90_s.unwrap_or(f64::NAN)));
        Series::line(name, points).error_bars(quantiles)
    })
}

fn parameters_against_time(record: &Record, layer: &str, rows: &[&Row]) -> Chart {
    let max_rows = rows.iter().map(|r| r.rows).max().unwrap_or(0);
    let rows = only(rows, |r| r.rows == max_rows && r.params > 0);
    let chart = Chart::new(Axis::log("parameters").format(thousands), time());
    engines(record, chart.title(format!("{layer}, {} rows", count(max_rows))), &rows, |name, rows| {
        Series::scatter(name, rows.iter().filter_map(|r| Some((r.params as f64, r.median_s?))))
    })
}

fn roofline(record: &Record, dtype: &str, rows: &[&Row]) -> Chart {
    let (copy, peak) = (record.meta.roof.copy_bytes_per_s / 1e9, record.meta.roof.flops(dtype) / 1e9);
    let place = |r: &&Row| {
        let median = r.median_s?;
        Some((r.flops / (r.gbps? * 1e9 * median), r.flops / median / 1e9))
    };
    let intensities = rows.iter().filter_map(place).map(|(x, _)| x).chain([peak / copy]);
    let (left, right) = intensities.fold((f64::INFINITY, 0.0f64), |(l, r), x| (l.min(x), r.max(x)));
    let (left, right) = (left / 2.0, right * 2.0);
    let roof = [(left, left * copy), (peak / copy, peak), (right, peak)];
    let [x, y] = ["flops per byte", "Gflop/s"].map(|label| Axis::log(label).format(digits_or_whole));
    let chart = Chart::new(x, y).title(dtype).series(Series::line("roof", roof).colour(Colour::INK));
    engines(record, chart, rows, |name, rows| Series::scatter(name, rows.iter().filter_map(place)))
}

/// Adds a series for every engine and rank; LoRA at equal parameters is dashed or hollow.
fn engines(
    record: &Record,
    chart: Chart,
    rows: &[&Row],
    series: impl Fn(String, &[&Row]) -> Series,
) -> Chart {
    distinct(rows, |r| (r.engine, r.rank)).into_iter().fold(chart, |chart, (engine, rank)| {
        let equal_rank = rank == 0 || rank == record.meta.rank;
        let mine = only(rows, |r| (r.engine, r.rank) == (engine, rank));
        let series = series(name(engine, equal_rank), &mine).colour(colour(engine));
        chart.series(if equal_rank { series } else { series.dashed() })
    })
}

fn name(engine: Kind, equal_rank: bool) -> String {
    format!("{}{}", engine.name(), if equal_rank { "" } else { ", equal parameters" })
}

/// An engine's colour, also in the text.
pub fn colour(engine: Kind) -> Colour {
    Colour::hex(&engine.info().colour).unwrap_or(Colour::INK)
}

fn time() -> Axis {
    Axis::log("time").format(|s| seconds(Some(s)))
}

fn thousands(v: f64) -> String {
    if v < 1e6 { format!("{} k", v / 1e3) } else { format!("{} M", v / 1e6) }
}

fn digits_or_whole(v: f64) -> String {
    if v >= 1.0 && v.fract() == 0.0 { count(v as usize) } else { digits(v) }
}

fn only<'a>(rows: &[&'a Row], wanted: impl Fn(&Row) -> bool) -> Vec<&'a Row> {
    rows.iter().copied().filter(|r| wanted(r)).collect()
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
