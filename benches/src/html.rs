//! `index.html`: one file, no script, nothing fetched.

use kron_report::{Error, Page, Table, Term};

use crate::engines;
use crate::format::digits;
use crate::plots;
use crate::record::Record;
use crate::table::{COLUMNS, Line, SUMMARY, cells, conditions, means, summary_cells, title};

const UNTIMED: &str = "A dash in place of a time: the engine was not timed, because the time of the run was \
                       up (time up) or because its result is wrong (wrong).";
const CACHED: &str = "Of copy: the operands' bytes per second as a share of the rate at which large arrays are \
                      copied. Of roof: the shortest time that this rate and the peak of arithmetic allow, as a \
                      share of the measured one. More than 100 % (cached): the operands came from caches, which \
                      are faster than memory.";

/// Makes the whole page; `baseline` is the comparison with an earlier run.
///
/// # Errors
/// Fails if the template or the plotting library does.
pub fn page(record: &Record, baseline: Option<&str>) -> Result<String, Error> {
    let m = &record.meta;
    let facts = [
        ("machine", format!("{}, {} CPUs, {}", m.machine.cpu, m.machine.cpus, m.machine.os)),
        ("conditions", conditions(record)),
        ("features", m.machine.features.join(" ")),
        ("program", format!("{} at {}, {}", m.machine.version, m.machine.commit, m.machine.rustc)),
        ("date", m.date.clone()),
        ("adapter", format!("rank {}, alpha {}", m.rank, digits(m.alpha.into()))),
    ];
    let terms = engines::table().iter().map(|e| Term {
        colour: Some(plots::colour(e.name)),
        name: e.title.clone(),
        code: e.name.name().into(),
        text: format!("{}; {}.", e.what, e.why),
    });
    let mut page = Page::new("Kron-LoRA against LoRA").table(Table::facts(facts));
    page = page.section("Engines").terms(terms);
    page = page.text("A dashed line or a hollow dot is LoRA at equal parameters.");
    page = page.section("Summary").table(table(SUMMARY, means(record).iter().map(summary_cells)));
    if let Some(text) = baseline {
        page = page.section("Against the baseline").code(text);
    }
    page = plots::all(record).into_iter().fold(page.section("Charts"), Page::figure);
    page = page.section("All cells").text(UNTIMED).text(CACHED);
    for rows in record
        .rows
        .chunk_by(|a, b| (&a.model, &a.layer, &a.dtype, a.rows) == (&b.model, &b.layer, &b.dtype, b.rows))
    {
        page = page.folded(title(&rows[0]), table(COLUMNS, Line::pair(rows).into_iter().map(cells)));
    }
    if !m.gemm.is_empty() {
        let head = ["engine", "layer", "dtype", "rank", "rows of the trial", "forward", "backward"];
        let lines = m.gemm.iter().map(|g| {
            let (name, layer) = (g.engine.name().into(), format!("{}×{}", g.d_out, g.d_in));
            let (rank, rows) = (g.rank.to_string(), g.rows.to_string());
            [name, layer, g.dtype.clone(), rank, rows, g.forward.clone(), g.backward.clone()]
        });
        page = page.section("Fastest products").table(table(head, lines));
    }
    page.html()
}

fn table<const N: usize>(head: [&str; N], lines: impl Iterator<Item = [String; N]>) -> Table {
    Table::new(head, lines).alert(|cells| cells.iter().any(|c| c.contains("WRONG")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::Kind;
    use crate::problem::TimedPasses;
    use crate::record::tests::{record, row};

    #[test]
    fn the_page_is_whole_and_fetches_nothing() {
        let record = record(vec![
            row(Kind::LoraGemm, 8, TimedPasses::Both, Some(0.006)),
            row(Kind::KronFused, 8, TimedPasses::Both, Some(0.004)),
            row(Kind::KronDense, 8, TimedPasses::Both, None),
        ]);
        let page = page(&record, Some("a < b")).unwrap();
        assert!(page.contains("<details><summary>") && page.contains("– (wrong)"));
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("a &#60; b") && page.contains("1.50×") && page.contains("<tr class=\"alert\""));
        let links = ["src=", "href=", "url(", "<script", "@import"];
        assert!(links.iter().all(|l| !page.contains(l)));
    }

    #[test]
    fn text_cannot_break_out_of_its_cell() {
        let mut hostile = row(Kind::KronFused, 8, TimedPasses::Both, Some(0.004));
        (hostile.model, hostile.layer, hostile.dtype) =
            ("<b a=\"1\">&".into(), "</svg>".into(), "<i>".into());
        let page = page(&record(vec![hostile]), None).unwrap();
        assert!(page.contains("&#60;b a=&#34;1&#34;&#62;&#38;"), "the model's name is there, escaped");
        for raw in ["<b a=\"1", "<i>"] {
            let at = page.find(raw);
            assert!(at.is_none(), "{raw} in {:?}", at.map(|at| &page[at.saturating_sub(60)..at + 60]));
        }
        assert_eq!(page.matches("</svg>").count(), 4);
    }
}
