//! Pages from hostile text and impossible values.

use std::collections::BTreeSet;

use kron_report::{Axis, Bar, Chart, Colour, Figure, Page, Series, Table, Term};

const HOSTILE: &str = "<script>alert(\"1\")</script>' onload=x & </svg></style>-->\u{1b}[31m\u{202e}\0";

/// Every part, with this text wherever text can be.
fn page(text: &str, values: &[f64]) -> String {
    let points = || values.iter().flat_map(|x| values.iter().map(|y| (*x, *y)));
    let axes = [Axis::linear(text), Axis::log(text), Axis::linear(text).whole()];
    let mut charts = Vec::new();
    for x in &axes {
        for y in &axes {
            let bars = values.iter().map(|v| Bar {
                name: text.into(),
                value: *v,
                range: Some((-*v, *v)),
                colour: None,
            });
            let both = Chart::new(x.clone(), y.clone())
                .title(text)
                .series(Series::line(text, points()).dashed())
                .series(Series::line(text, values.iter().map(|v| (*v, *v))))
                .series(Series::scatter(text, points()).error_bars(points()));
            let histogram = Chart::histogram(x.clone(), text, values.iter().copied());
            charts.extend([both, Chart::bars(y.clone(), bars), histogram]);
        }
    }
    let term = Term { name: text.into(), code: text.into(), text: text.into(), colour: None };
    let table =
        || Table::new([text, text], [vec![text], vec![text; 3], vec![]]).caption(text).alert(|_| true);
    let page = Page::new(text).summary(text).section(text).subsection(text).text(text).note(text).code(text);
    let page = page.folded(text, table()).table(table()).table(Table::facts([(text, text)])).terms([term]);
    page.chart(text, Chart::new(Axis::linear(text), Axis::log(text)))
        .figure(Figure::new(text, charts))
        .html()
        .unwrap()
}

/// The elements of a page by name, in order: `/` before the name of an end tag.
fn tags(html: &str) -> Vec<&str> {
    html.split('<').skip(1).map(|rest| rest.split([' ', '>', '\n']).next().unwrap_or_default()).collect()
}

#[test]
fn hostile_text_stays_text() {
    let (plain, hostile) = (page("name", &[1.0, 2.0]), page(HOSTILE, &[1.0, 2.0]));
    assert_eq!(tags(&plain), tags(&hostile));
    assert!(hostile.contains("&#60;script&#62;alert(&#34;1&#34;)") && !hostile.contains("<script"));
    assert!(!hostile.contains(['\u{1b}', '\u{202e}', '\0']));
    let attributes = |html: &str| {
        html.split('<').map(|tag| tag.split('>').next().unwrap().matches('=').count()).sum::<usize>()
    };
    assert_eq!(attributes(&plain), attributes(&hostile));
}

#[test]
fn no_value_is_impossible() {
    let (nan, inf, max, min) = (f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE);
    let lists: [&[f64]; 9] = [
        &[],
        &[nan],
        &[inf, -inf, nan],
        &[0.0, -0.0],
        &[max, -max, min, 5e-324],
        &[1.0, nan, 1.0, inf, 1.0],
        &[-1.0, -2.0],
        &[1e16, 1e16 + 2.0],
        &[1e-149, 1e149, -1e149],
    ];
    for values in lists {
        let html = page("name", values);
        let drawn = html.split("<svg").skip(1).map(|svg| svg.split("</svg>").next().unwrap());
        for svg in drawn {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
        }
    }
}

#[test]
fn a_page_fetches_nothing_and_says_so() {
    let html = page("name", &[1.0, 2.0]);
    assert!(["src=", "href=", "url(", "<script", "@import"].iter().all(|link| !html.contains(link)));
    assert!(html.contains("default-src 'none'") && html.contains("prefers-color-scheme: dark"));
    assert!(html.starts_with("<!doctype html>\n<html lang=\"en\">") && html.ends_with("</html>\n"));
}

#[test]
fn charts_have_titles_and_tables_have_headers() {
    let chart = Chart::new(Axis::linear("step"), Axis::linear("loss")).title("Run 7");
    let chart = chart.series(Series::line("training", [(0.0, 1.0), (1.0, 0.5)]));
    assert!(chart.svg().unwrap().contains("<title>Run 7: Chart of loss against step; training</title>"));
    let table = Table::new(["set", "loss"], [["test", "0.4"]]);
    let html = Page::new("Run").chart("Loss.", chart).table(table).html().unwrap();
    assert!(html.contains("<th scope=\"col\">set</th><th scope=\"col\" class=\"n\">loss</th>"));
    assert!(html.contains("<th scope=\"row\">test</th><td class=\"n\">0.4</td>"));
    assert!(html.contains("<li><b style=\"color:#2F7ED8\">■</b> training</li>"));
}

#[test]
fn a_charts_file_is_an_image_with_a_legend() {
    let chart = Chart::new(Axis::linear("step"), Axis::linear(HOSTILE))
        .series(Series::line("fused", [(0.0, 1.0), (1.0, 0.5)]))
        .series(Series::line("", [(0.0, 0.7)]))
        .series(Series::scatter(HOSTILE, [(0.0, 0.2)]).colour(Colour::rgb(0xd1, 0x49, 0x5b)));
    let file = chart.svg_file().unwrap();
    assert!(
        file.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" ") && file.trim_end().ends_with("</svg>")
    );
    assert_eq!((file.matches("<svg").count(), file.matches("</svg>").count()), (1, 1));
    assert!(!file.contains("<script") && !file.contains(['\0', '\u{1b}']), "{file}");
    // A line for each series with a name, in its colour, in the room below the chart.
    let legend: Vec<&str> = file.split("<text x=\"86\" ").skip(1).collect();
    assert_eq!(legend.len(), 2);
    assert!(legend[0].contains(">fused</text>") && legend[1].contains("y=\"706\""), "{legend:?}");
    assert!(
        file.contains("viewBox=\"0 0 1040 728\"") && file.contains("cy=\"706\" r=\"10\" fill=\"#D1495B\"")
    );
    // Everything else is the chart of a page.
    let page = chart.svg().unwrap();
    let drawn = page.split_once("</title>").unwrap().1;
    assert!(drawn.len() > 1000 && file.ends_with(drawn));
}

#[test]
fn a_gap_divides_a_line_and_a_lonely_point_has_a_dot() {
    let values = (0..200).map(|i| (f64::from(i), if i == 100 || i == 102 { f64::NAN } else { 1.0 }));
    let svg =
        Chart::new(Axis::linear("x"), Axis::linear("y")).series(Series::line("", values)).svg().unwrap();
    let lines = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains("opacity=\"0.9\""));
    assert!(lines.clone().filter(|line| line.matches(',').count() > 2).count() == 2, "{svg}");
    // Larger than the dots of a line, so that one evaluation of a long run is seen.
    assert_eq!(svg.matches("<circle").count(), 1);
    let radius =
        |svg: &str| svg.split(" r=\"").nth(1).unwrap().split('"').next().unwrap().parse::<u32>().unwrap();
    let line = Series::line("", [(1.0, 1.0), (2.0, 2.0)]);
    let dots = Chart::new(Axis::linear("x"), Axis::linear("y")).series(line).svg().unwrap();
    assert!(radius(&svg) > radius(&dots), "{svg}");
}

#[test]
fn every_bar_has_its_number_and_every_mark_its_shape_in_the_legend() {
    let bars =
        (1..=20).map(|i| Bar { name: format!("engine {i}"), value: 0.1 * f64::from(i), ..Bar::default() });
    let chart = Chart::bars(Axis::linear("× LoRA"), bars);
    let html = Page::new("Bars").chart("Ratios.", chart).html().unwrap();
    for i in 1..=20 {
        assert!(
            html.contains(&format!(">\n{i}\n</text>")) && html.contains(&format!("{i}</b> engine {i}</li>"))
        );
    }
    let points = || [(1.0, 1.0), (2.0, 2.0)];
    let chart = Chart::new(Axis::linear("x"), Axis::linear("y"))
        .series(Series::line("a", points()))
        .series(Series::line("b", points()).dashed())
        .series(Series::scatter("c", points()))
        .series(Series::scatter("d", points()).dashed());
    let html = Page::new("Marks").chart("All.", chart).html().unwrap();
    for mark in ["■</b> a", "□</b> b", "●</b> c", "○</b> d"] {
        assert!(html.contains(mark), "{mark}");
    }
}

/// Charts whose series have the same names share a legend; elsewhere a colour has another name in
/// each chart, and each has its own legend.
#[test]
fn a_mark_has_one_name_in_a_legend() {
    let chart = |names: &[String]| {
        let axes = Chart::new(Axis::linear("x"), Axis::linear("y"));
        names.iter().fold(axes, |chart, name| chart.series(Series::line(name, [(1.0, 1.0)])))
    };
    let legends = |charts: Vec<Chart>| {
        let html = Page::new("Legends").figure(Figure::new("All.", charts)).html().unwrap();
        let lists =
            html.split("<ul class=\"legend\">").skip(1).map(|list| list.split("</ul>").next().unwrap());
        lists
            .map(|list| list.lines().filter(|l| l.starts_with("<li>")).map(str::to_owned).collect())
            .collect()
    };
    let layers: Vec<String> = (0..56).map(|i| format!("layer {i}")).collect();
    let panels: Vec<Vec<String>> = legends(layers.chunks(Colour::DISTINCT).map(chart).collect());
    assert_eq!(panels.iter().map(Vec::len).collect::<Vec<_>>(), vec![8; 7]);
    for lines in &panels {
        let marks: BTreeSet<&str> = lines.iter().map(|line| line.split("</b>").next().unwrap()).collect();
        assert_eq!(marks.len(), lines.len(), "{lines:?}");
    }
    let shared: Vec<Vec<String>> = legends(vec![chart(&layers[..3]), chart(&layers[..2])]);
    assert_eq!(shared.iter().map(Vec::len).collect::<Vec<_>>(), vec![3]);
}

#[test]
fn a_histogram_counts_every_finite_value_once() {
    let values = [1.0, 1.0, 2.0, f64::NAN, 9.0, f64::INFINITY];
    let svg = Chart::histogram(Axis::linear("s"), "steps", values).svg().unwrap();
    // Two bins of four values: three and one.
    let height = |rect: &str| rect.split("height=\"").nth(1)?.split('"').next()?.parse::<f64>().ok();
    let heights: Vec<f64> = svg.lines().filter(|l| l.starts_with("<rect")).filter_map(height).collect();
    assert!(heights.len() == 2 && (heights[0] / heights[1] - 3.0).abs() < 0.05, "{heights:?}");
}
