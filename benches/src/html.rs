//! `index.html`: one file, no script, nothing fetched.

use std::error::Error;
use std::fmt::Write;

use crate::engines;
use crate::format::digits;
use crate::plots;
use crate::record::Record;
use crate::table::{COLUMNS, Line, SUMMARY, cells, conditions, means, summary_cells};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1360px; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } figure { margin: 1.5rem 0; overflow-x: auto } figcaption { color: #556 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #dde } th { border-color: #889 }
th:first-child, td:first-child { text-align: left } .wrong { color: #b00; font-weight: bold }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em }
dt { font-weight: bold } dd { margin: 0 0 .4rem 1.3em } code { font-size: 13px }
";

/// The whole page; `baseline` is the comparison with an earlier run.
///
/// # Errors
/// What the plotting library refuses.
pub fn page(record: &Record, baseline: Option<&str>) -> Result<String, Box<dyn Error>> {
    let mut h = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>kron-bench</title>\n\
         <style>{STYLE}</style>\n<h1>Kron-LoRA against LoRA</h1>\n"
    );
    let m = &record.meta;
    let facts = [
        ("machine", format!("{}, {} CPUs, {}", m.machine.cpu, m.machine.cpus, m.machine.os)),
        ("conditions", conditions(record)),
        ("features", m.machine.features.join(" ")),
        ("program", format!("{} at {}, {}", m.machine.version, m.machine.commit, m.machine.rustc)),
        ("date", m.date.clone()),
        ("adapter", format!("rank {}, alpha {}", m.rank, digits(m.alpha.into()))),
    ];
    h += "<table>\n";
    for (name, value) in facts {
        writeln!(h, "<tr><td>{name}<td style=\"text-align:left\">{}</tr>", escape(&value))?;
    }
    h += "</table>\n<h2>Engines</h2>\n<dl>\n";
    for e in engines::table() {
        let dot = format!("<span class=\"dot\" style=\"background:{}\"></span>", e.colour);
        let (name, title) = (e.name.name(), escape(&e.title));
        writeln!(h, "<dt>{dot}{title} <code>{name}</code><dd>{}; {}.", escape(&e.what), escape(&e.why))?;
    }
    h += "</dl>\n<p>A paler line is LoRA at equal parameters.</p>\n<h2>Summary</h2>\n";
    let lines: Vec<_> = means(record).iter().map(summary_cells).collect();
    table(&mut h, &SUMMARY, &lines)?;
    if let Some(text) = baseline {
        writeln!(h, "<h2>Against the baseline</h2>\n<pre>{}</pre>", escape(text))?;
    }
    h += "<h2>Pictures</h2>\n";
    for p in plots::all(record)? {
        writeln!(h, "<figure>{}<figcaption>{}</figcaption></figure>", p.svg, escape(&p.caption))?;
    }
    h += "<h2>All cells</h2>\n";
    for rows in record
        .rows
        .chunk_by(|a, b| (&a.model, &a.layer, &a.dtype, a.rows) == (&b.model, &b.layer, &b.dtype, b.rows))
    {
        let r = &rows[0];
        writeln!(
            h,
            "<h3>{} {} {}×{} · {} · {} rows</h3>",
            r.model, r.layer, r.d_out, r.d_in, r.dtype, r.rows
        )?;
        table(&mut h, &COLUMNS, &Line::pair(rows).into_iter().map(cells).collect::<Vec<_>>())?;
    }
    if !m.gemm.is_empty() {
        h += "<h2>Fastest products</h2>\n";
        let lines: Vec<_> = (m.gemm.iter())
            .map(|g| {
                let layer = format!("{}×{}", g.d_out, g.d_in);
                let name = g.engine.name().to_string();
                [
                    name,
                    layer,
                    g.dtype.clone(),
                    g.rank.to_string(),
                    g.rows.to_string(),
                    g.forward.clone(),
                    g.backward.clone(),
                ]
            })
            .collect();
        table(
            &mut h,
            &["engine", "layer", "dtype", "rank", "rows of the trial", "forward", "backward"],
            &lines,
        )?;
    }
    Ok(h + "</html>\n")
}

fn table<const N: usize>(h: &mut String, header: &[&str; N], lines: &[[String; N]]) -> std::fmt::Result {
    h.write_str("<table>\n<tr>")?;
    header.iter().try_for_each(|c| write!(h, "<th>{}", escape(c)))?;
    h.write_str("</tr>\n")?;
    for line in lines {
        let wrong = if line.iter().any(|c| c.contains("WRONG")) { " class=\"wrong\"" } else { "" };
        write!(h, "<tr{wrong}>")?;
        line.iter().try_for_each(|c| write!(h, "<td>{}", escape(c)))?;
        h.write_str("</tr>\n")?;
    }
    h.write_str("</table>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::Kind;
    use crate::problem::Pass;
    use crate::record::tests::{record, row};

    #[test]
    fn the_page_is_whole_and_fetches_nothing() {
        let record = record(vec![
            row(Kind::LoraGemm, 8, Pass::Both, Some(0.006)),
            row(Kind::KronFused, 8, Pass::Both, Some(0.004)),
            row(Kind::KronDense, 8, Pass::Both, None),
        ]);
        let page = page(&record, Some("a < b")).unwrap();
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("a &lt; b") && page.contains("1.50×") && page.contains("class=\"wrong\""));
        let links = ["src=", "href=", "url(", "<script", "@import"];
        assert!(links.iter().all(|l| !page.contains(l)));
    }

    #[test]
    fn text_cannot_break_out_of_its_cell() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
