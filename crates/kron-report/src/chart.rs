//! Charts and series as plain data.

use crate::axis::Axis;
use crate::colour::Colour;
use crate::text::clean;

/// Bars with a number each at most; of more, some have none.
const MAX_BARS: usize = 24;

/// Bars of a histogram at most.
const MAX_BINS: usize = 24;

/// A chart: two axes and the series drawn over them.
///
/// # Examples
/// ```
/// use kron_report::{Axis, Chart, Series};
///
/// let fast = Series::line("fused", [(1.0, 2e-6), (16.0, 9e-6)]).error_bars([(1e-6, 3e-6), (8e-6, 1e-5)]);
/// let slow = Series::line("dense", [(1.0, 5e-6), (16.0, 8e-5)]).dashed();
/// let chart = Chart::new(Axis::log("rows"), Axis::log("seconds")).series(fast).series(slow);
/// assert!(chart.svg()?.starts_with("<svg role=\"img\""));
/// # Ok::<(), kron_report::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
    pub(crate) numbered: bool,
    kind: &'static str,
}

/// A named series of points.
#[derive(Clone, Debug)]
pub struct Series {
    pub(crate) name: String,
    pub(crate) colour: Option<Colour>,
    pub(crate) points: Vec<Point>,
    pub(crate) mark: Mark,
    pub(crate) dashed: bool,
}

/// A bar of [`Chart::bars`].
#[derive(Clone, Debug, Default)]
pub struct Bar {
    /// Name in the legend.
    pub name: String,
    /// Height.
    pub value: f64,
    /// Ends of the error bar.
    pub range: Option<(f64, f64)>,
    /// Colour; without it the palette gives one.
    pub colour: Option<Colour>,
}

/// A point, and the ends of its error bar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub x: f64,
    pub y: f64,
    pub range: Option<(f64, f64)>,
}

/// Drawing of a series.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    Line,
    Scatter,
    /// Bars of this width.
    Bars(f64),
}

impl Chart {
    /// Makes a chart without series.
    pub fn new(x: Axis, y: Axis) -> Self {
        Self { title: String::new(), x, y, series: Vec::new(), numbered: false, kind: "Chart" }
    }

    /// Makes a bar for each value; their numbers under the bars lead to the names in the legend.
    pub fn bars(y: Axis, bars: impl IntoIterator<Item = Bar>) -> Self {
        let series = |(i, bar): (usize, Bar)| {
            let point = Point { x: i as f64 + 1.0, y: bar.value, range: bar.range };
            let (mark, colour) = (Mark::Bars(0.7), bar.colour);
            Series { mark, colour, points: vec![point], ..Series::line(bar.name, []) }
        };
        let series: Vec<Series> = bars.into_iter().enumerate().map(series).collect();
        // A number under each bar, where there is room for it.
        let x = Axis::linear("").whole().max_ticks(series.len().min(MAX_BARS) + 3);
        Self { series, numbered: true, kind: "Bar chart", ..Self::new(x, y) }
    }

    /// Counts the values in bins of equal width; values that are not finite are left out.
    ///
    /// # Examples
    /// ```
    /// use kron_report::{Axis, Chart};
    ///
    /// let chart = Chart::histogram(Axis::linear("seconds"), "steps", [0.11, 0.12, f64::NAN, 0.14]);
    /// assert!(chart.svg()?.contains("<rect"));
    /// # Ok::<(), kron_report::Error>(())
    /// ```
    pub fn histogram(x: Axis, of: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let linear = Axis::linear("");
        let values: Vec<f64> = values.into_iter().filter_map(|v| linear.coordinate(v)).collect();
        let (low, high) =
            values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        let bins = ((values.len() as f64).sqrt().ceil() as usize).clamp(1, MAX_BINS);
        // All values the same make one bar.
        let width = if high > low { (high - low) / bins as f64 } else { (0.1 * low.abs()).max(1e-9) };
        let mut counts = vec![0u32; if values.is_empty() { 0 } else { bins }];
        for v in values {
            // The highest value belongs to the last bin.
            if let Some(count) = counts.get_mut((((v - low) / width) as usize).min(bins - 1)) {
                *count += 1;
            }
        }
        let bars = counts.iter().enumerate().map(|(i, n)| (low + (i as f64 + 0.5) * width, f64::from(*n)));
        let series = Series { mark: Mark::Bars(width), ..Series::line("", bars) };
        let y = Axis::linear(of).whole();
        Self { kind: "Histogram", ..Self::new(x, y) }.series(series)
    }

    /// Sets the title.
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: clean(title), ..self }
    }

    /// Adds a series.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Describes the chart in words.
    pub(crate) fn description(&self) -> String {
        let title = if self.title.is_empty() { String::new() } else { format!("{}: ", self.title) };
        let names: Vec<&str> =
            self.series.iter().map(|s| s.name.as_str()).filter(|n| !n.is_empty()).collect();
        let names = if names.is_empty() { String::new() } else { format!("; {}", names.join(", ")) };
        let axes = match (self.y.label.as_str(), self.x.label.as_str()) {
            (y, "") => y.to_owned(),
            (y, x) => format!("{y} against {x}"),
        };
        format!("{title}{} of {axes}{names}", self.kind)
    }

    /// Returns the series' colours, in their order.
    pub(crate) fn colours(&self) -> impl Iterator<Item = Colour> {
        self.series.iter().enumerate().map(|(i, s)| s.colour.unwrap_or(Colour::pick(i)))
    }
}

impl Series {
    /// Makes a line through the points (x, y); a value that is not finite leaves a gap.
    pub fn line(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().map(|(x, y)| Point { x, y, range: None }).collect();
        Self { name: clean(name), colour: None, points, mark: Mark::Line, dashed: false }
    }

    /// Makes points (x, y) without a line.
    pub fn scatter(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { mark: Mark::Scatter, ..Self::line(name, points) }
    }

    /// Gives the points error bars from low to high, in their order.
    pub fn error_bars(mut self, ranges: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.points.iter_mut().zip(ranges).for_each(|(point, range)| point.range = Some(range));
        self
    }

    /// Sets the colour; without it the palette gives one.
    pub fn colour(self, colour: Colour) -> Self {
        Self { colour: Some(colour), ..self }
    }

    /// Draws the line dashed and the points hollow.
    pub fn dashed(self) -> Self {
        Self { dashed: true, ..self }
    }
}
