//! A page and its parts.

use askama::Template;

use crate::chart::{Chart, Mark, Series};
use crate::colour::Colour;
use crate::error::Error;
use crate::table::Table;
use crate::text::clean;

/// A page: a title, and parts in the order in which they are added.
///
/// # Examples
/// ```
/// use kron_report::Page;
///
/// let page = Page::new("Layers").section("<script>alert(1)</script>").note("Names come from files.");
/// let html = page.html()?;
/// assert!(html.starts_with("<!doctype html>") && !html.contains("<script"));
/// # Ok::<(), kron_report::Error>(())
/// ```
#[derive(Clone, Debug, Template)]
#[template(path = "page.html")]
pub struct Page {
    title: String,
    summary: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Section(String),
    Subsection(String),
    Text(String),
    Note(String),
    Code(String),
    Table(Table),
    Folded(String, Table),
    Terms(Vec<Term>),
    Figure(Figure),
}

/// An entry of a list of terms.
#[derive(Clone, Debug, Default)]
pub struct Term {
    /// Colour in the charts.
    pub colour: Option<Colour>,
    /// Term.
    pub name: String,
    /// Name in the tables.
    pub code: String,
    /// Meaning.
    pub text: String,
}

/// Charts with one caption, and with one legend where each of its marks has one name in all of them.
#[derive(Clone, Debug)]
pub struct Figure {
    caption: String,
    panels: Vec<Panel>,
    legend: Vec<Entry>,
}

/// A chart, with a legend of its own where the figure has none.
#[derive(Clone, Debug)]
struct Panel {
    chart: Chart,
    legend: Vec<Entry>,
}

/// A line of a legend.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    colour: Colour,
    /// A number, or the series' shape: hollow where it is dashed.
    mark: String,
    name: String,
}

impl Page {
    /// Makes an empty page.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: clean(title), summary: String::new(), parts: Vec::new() }
    }

    /// Sets the text under the title: the result in a sentence or two.
    pub fn summary(self, text: impl Into<String>) -> Self {
        Self { summary: clean(text), ..self }
    }

    /// Begins a section.
    pub fn section(self, heading: impl Into<String>) -> Self {
        self.part(Part::Section(clean(heading)))
    }

    /// Begins a section inside a section.
    pub fn subsection(self, heading: impl Into<String>) -> Self {
        self.part(Part::Subsection(clean(heading)))
    }

    /// Adds a paragraph.
    pub fn text(self, text: impl Into<String>) -> Self {
        self.part(Part::Text(clean(text)))
    }

    /// Adds a paragraph that stands out.
    pub fn note(self, text: impl Into<String>) -> Self {
        self.part(Part::Note(clean(text)))
    }

    /// Adds text whose lines and spaces are kept, such as a settings file.
    pub fn code(self, text: impl Into<String>) -> Self {
        self.part(Part::Code(clean(text)))
    }

    /// Adds a table.
    pub fn table(self, table: Table) -> Self {
        self.part(Part::Table(table))
    }

    /// Adds a table of which the page shows the heading alone, until the reader opens it.
    pub fn folded(self, heading: impl Into<String>, table: Table) -> Self {
        self.part(Part::Folded(clean(heading), table))
    }

    /// Adds a list of terms and what they mean.
    pub fn terms(self, terms: impl IntoIterator<Item = Term>) -> Self {
        let clean = |t: Term| Term { name: clean(t.name), code: clean(t.code), text: clean(t.text), ..t };
        self.part(Part::Terms(terms.into_iter().map(clean).collect()))
    }

    /// Adds a chart with its caption.
    pub fn chart(self, caption: impl Into<String>, chart: Chart) -> Self {
        self.figure(Figure::new(caption, [chart]))
    }

    /// Adds charts that share a caption and a legend.
    pub fn figure(self, figure: Figure) -> Self {
        self.part(Part::Figure(figure))
    }

    /// Writes the page as one HTML file that fetches nothing.
    ///
    /// # Errors
    /// Fails if the drawing or the template library does; no value of the data is a reason.
    pub fn html(&self) -> Result<String, Error> {
        self.render().map_err(Error::new)
    }

    fn part(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }
}

impl Figure {
    /// Makes a figure; a series that several charts have under one name and colour is in the legend once.
    pub fn new(caption: impl Into<String>, charts: impl IntoIterator<Item = Chart>) -> Self {
        let panel = |chart: Chart| Panel { legend: entries(&chart), chart };
        let mut panels: Vec<Panel> = charts.into_iter().map(panel).collect();
        let mut legend: Vec<Entry> = Vec::new();
        for entry in panels.iter().flat_map(|panel| &panel.legend) {
            if !legend.contains(entry) {
                legend.push(entry.clone());
            }
        }
        let ambiguous =
            |(i, a): (usize, &Entry)| legend[..i].iter().any(|b| (a.colour, &a.mark) == (b.colour, &b.mark));
        if panels.len() > 1 && legend.iter().enumerate().any(ambiguous) {
            legend.clear();
        } else {
            panels.iter_mut().for_each(|panel| panel.legend.clear());
        }
        Self { caption: clean(caption), panels, legend }
    }
}

/// Returns a line for each series of the chart that has a name.
fn entries(chart: &Chart) -> Vec<Entry> {
    let entry = |(i, (series, colour)): (usize, (&Series, Colour))| {
        let mark = match (chart.numbered, series.dashed, series.mark) {
            (true, ..) => (i + 1).to_string(),
            (_, true, Mark::Scatter) => "○".into(),
            (_, _, Mark::Scatter) => "●".into(),
            (_, true, _) => "□".into(),
            _ => "■".into(),
        };
        Entry { colour, mark, name: series.name.clone() }
    };
    let all = chart.series.iter().zip(chart.colours()).enumerate().map(entry);
    all.filter(|entry| !entry.name.is_empty()).collect()
}
