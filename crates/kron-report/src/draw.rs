//! Charts as SVG.

use std::ops::Range;

use askama::Template;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::axis::Scale;
use crate::chart::{Chart, Mark, Point, Series};
use crate::colour::Colour;
use crate::error::Error;

/// Drawing units. A unit is half a pixel on a wide screen, because plotters rounds to whole units.
const SIZE: (u32, u32) = (1040, 640);
/// Height of the text, as plotters counts it.
const TEXT: f64 = 32.0;
/// Height of a line of a file's legend.
const LEGEND_LINE: u32 = 44;
/// Mean width of a letter.
const LETTER: f64 = 14.5;
const LINE: u32 = 4;
const DOT: u32 = 6;
/// Radius of a point of a line that has no line on either side.
const LONE_DOT: u32 = 11;
/// Of lines and bars, so that those below are seen.
const OPACITY: f64 = 0.9;

/// Lines of more points have no dots.
const MAX_DOTS: usize = 60;

/// The element with a title for screen readers.
#[derive(Template)]
#[template(
    ext = "svg",
    source = "<svg role=\"img\" viewBox=\"0 0 {{ width }} {{ height }}\"><title>{{ title }}</title>{{ drawn|safe }}"
)]
struct Svg<'a> {
    width: u32,
    height: u32,
    title: &'a str,
    drawn: &'a str,
}

/// The file of a chart, with a legend below it on white.
#[derive(Template)]
#[template(
    ext = "svg",
    source = "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {{ width }} {{ height }}\" \
              color=\"#222222\" font-family=\"sans-serif\" font-size=\"{{ text }}\"><title>{{ title }}</title>\
              <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>{% for line in legend %}<circle cx=\"60\" \
              cy=\"{{ line.y }}\" r=\"10\" fill=\"{{ line.colour }}\"/><text x=\"86\" y=\"{{ line.y }}\" dy=\"0.35em\" \
              fill=\"currentColor\">{{ line.name }}</text>{% endfor %}{{ drawn|safe }}"
)]
struct SvgFile<'a> {
    width: u32,
    height: u32,
    text: f64,
    title: &'a str,
    legend: Vec<LegendLine<'a>>,
    drawn: &'a str,
}

/// A line of the legend of a chart's file.
struct LegendLine<'a> {
    y: u32,
    colour: Colour,
    name: &'a str,
}

impl Chart {
    /// Draws the chart as one SVG element, without title and legend.
    ///
    /// # Errors
    /// Fails if the drawing library does; no value of the data is a reason.
    pub fn svg(&self) -> Result<String, Error> {
        let (width, height) = SIZE;
        let (title, drawn) = (&self.description(), &self.drawn()?);
        Svg { width, height, title, drawn }.render().map_err(Error::new)
    }

    /// Draws the chart with its legend as the text of an SVG file.
    ///
    /// # Errors
    /// As [`Chart::svg`].
    pub fn svg_file(&self) -> Result<String, Error> {
        let (width, below) = SIZE;
        let named = self.series.iter().zip(self.colours()).filter(|(series, _)| !series.name.is_empty());
        let line = |(i, (series, colour))| {
            let (series, y): (&Series, u32) = (series, below + i * LEGEND_LINE + LEGEND_LINE / 2);
            LegendLine { y, colour, name: &series.name }
        };
        let legend: Vec<LegendLine> = (0..).zip(named).map(line).collect();
        let height = below + LEGEND_LINE * legend.len() as u32;
        let (title, drawn) = (&self.description(), &self.drawn()?);
        SvgFile { width, height, text: TEXT, title, legend, drawn }.render().map_err(Error::new)
    }

    /// Draws axes and series; the text ends with the element's end.
    fn drawn(&self) -> Result<String, Error> {
        let mut svg = String::new();
        plot(self, &mut svg).map_err(Error::new)?;
        let (_, drawn) = svg.split_once('>').unwrap_or_default();
        // Black stands for the text's colour, which the page sets. Text of the chart cannot hold a quote.
        Ok(drawn.replace("=\"#000000\"", "=\"currentColor\""))
    }
}

type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A series in drawing coordinates; `None` where a value has no place on the axes.
struct Placed<'a> {
    series: &'a Series,
    points: Vec<Option<Place>>,
}

/// A point in drawing coordinates.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    range: Option<(f64, f64)>,
    /// Left and right edge of its bar.
    edges: (f64, f64),
}

impl<'a> Placed<'a> {
    fn new(chart: &Chart, series: &'a Series) -> Self {
        let place = |p: &Point| {
            let (x, y) = (chart.x.coordinate(p.x)?, chart.y.coordinate(p.y)?);
            let range =
                p.range.and_then(|(low, high)| Some((chart.y.coordinate(low)?, chart.y.coordinate(high)?)));
            let half = if let Mark::Bars(width) = series.mark { 0.48 * width } else { 0.0 };
            Some(Place {
                x,
                y,
                range,
                edges: (chart.x.coordinate(p.x - half)?, chart.x.coordinate(p.x + half)?),
            })
        };
        Self { series, points: series.points.iter().map(place).collect() }
    }

    fn is_bars(&self) -> bool {
        matches!(self.series.mark, Mark::Bars(_))
    }

    fn whole(&self) -> impl Iterator<Item = &Place> {
        self.points.iter().flatten()
    }

    /// The x coordinates that have to be visible.
    fn xs(&self) -> impl Iterator<Item = f64> {
        self.whole().flat_map(|p| [p.edges.0, p.edges.1])
    }

    /// The y coordinates that have to be visible.
    fn ys(&self, base: f64) -> impl Iterator<Item = f64> {
        let bars = self.is_bars() && base.is_finite();
        let (low, high) =
            (|p: &Place| p.range.map_or(p.y, |r| r.0), |p: &Place| p.range.map_or(p.y, |r| r.1));
        self.whole().flat_map(move |p| [p.y, low(p), high(p), if bars { base } else { p.y }])
    }
}

/// Draws axes and series.
fn plot(chart: &Chart, svg: &mut String) -> Drawn {
    let placed: Vec<Placed> = chart.series.iter().map(|series| Placed::new(chart, series)).collect();
    let x = chart.x.scale(placed.iter().flat_map(Placed::xs));
    let y = chart.y.scale(placed.iter().flat_map(|p| p.ys(chart.y.base())));
    let middle = (0.5 * (x.low + x.high), 0.5 * (y.low + y.high));
    let base = chart.y.base().clamp(y.low, y.high);
    let longest = y.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
    let lines = |label: &str| if label.is_empty() { 1.2 } else { 2.4 };

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut context = ChartBuilder::on(&root)
        .margin(12)
        .margin_right(30)
        .x_label_area_size((lines(&chart.x.label) * TEXT) as i32)
        .y_label_area_size((LETTER * longest as f64 + lines(&chart.y.label) * 0.6 * TEXT) as i32)
        .build_cartesian_2d(x, y)?;
    context
        .configure_mesh()
        .axis_style(BLACK.mix(0.5))
        .bold_line_style(BLACK.mix(0.14))
        .light_line_style(TRANSPARENT)
        .label_style(text())
        .axis_desc_style(text())
        .x_desc(&chart.x.label)
        .y_desc(&chart.y.label)
        .draw()?;

    for (one, colour) in placed.iter().zip(chart.colours()) {
        let [red, green, blue] = colour.parts();
        let colour = RGBColor(red, green, blue);
        match one.series.mark {
            Mark::Bars(_) => bars(&mut context, one, colour, base)?,
            Mark::Line | Mark::Scatter => curve(&mut context, one, colour)?,
        }
    }
    if placed.iter().all(|one| one.whole().next().is_none()) {
        let style = text().pos(Pos::new(HPos::Center, VPos::Center));
        context.draw_series([Text::new("no values", middle, style)])?;
    }
    root.present()
}

/// Draws bars, whose error bars are in the text's colour.
fn bars(plot: &mut Plot, one: &Placed, colour: RGBColor, base: f64) -> Drawn {
    let bar = |p: &Place| [(p.edges.0, base), (p.edges.1, p.y)];
    plot.draw_series(one.whole().map(|p| Rectangle::new(bar(p), colour.mix(OPACITY).filled())))?;
    error_bars(plot, one, BLACK)
}

/// Draws a line with dots, or dots alone.
fn curve(plot: &mut Plot, one: &Placed, colour: RGBColor) -> Drawn {
    let Series { mark, dashed, .. } = one.series;
    let line = colour.mix(OPACITY).stroke_width(LINE);
    let is_line = matches!(mark, Mark::Line);
    for part in one.points.split(Option::is_none).filter(|_| is_line) {
        let part = part.iter().flatten().map(|p| (p.x, p.y));
        match dashed {
            true => plot.draw_series(DashedLineSeries::new(part, 14, 10, line))?,
            false => plot.draw_series(LineSeries::new(part, line))?,
        };
    }
    // A point between two gaps has no line: only its dot shows it.
    let is_gap = |at: Option<usize>| at.and_then(|at| *one.points.get(at)?).is_none();
    let alone = |at: usize| is_gap(at.checked_sub(1)) && is_gap(Some(at + 1));
    let all = !is_line || one.points.len() <= MAX_DOTS;
    let dots = one.points.iter().enumerate().filter(|(at, _)| all || alone(*at));
    let style = if *dashed { colour.stroke_width(LINE) } else { colour.filled() };
    let dots = dots.filter_map(|(at, p)| Some((at, (*p)?)));
    let radius = |at| if is_line && alone(at) { LONE_DOT } else { DOT };
    plot.draw_series(dots.map(|(at, p)| Circle::new((p.x, p.y), radius(at), style)))?;
    error_bars(plot, one, colour)
}

fn error_bars(plot: &mut Plot, one: &Placed, colour: RGBColor) -> Drawn {
    let ends = one.whole().filter_map(|p| Some((p, p.range?)));
    let bar = |(p, (low, high)): (&Place, (f64, f64))| {
        ErrorBar::new_vertical(p.x, low, p.y, high, colour.stroke_width(LINE / 2), 14)
    };
    plot.draw_series(ends.map(bar)).map(|_| ())
}

fn text() -> TextStyle<'static> {
    ("sans-serif", TEXT).into()
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, at: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (at - self.low) / (self.high - self.low);
        from + (share.clamp(0.0, 1.0) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let light = hint.weight().allow_light_points();
        self.ticks.iter().filter(|_| !light).map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, at: &f64) -> String {
        self.ticks.iter().find(|(tick, _)| tick == at).map_or(String::new(), |(_, label)| label.clone())
    }
}
