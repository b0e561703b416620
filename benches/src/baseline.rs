//! The comparison of this run with an earlier one.

use comfy_table::{CellAlignment, Table, presets};

use crate::format::{seconds, times};
use crate::record::{Record, Row};
use crate::stats::geometric_mean;

/// A measurement that both runs have.
pub struct Change<'a> {
    /// The earlier run's row.
    pub old: &'a Row,
    /// This run's row.
    pub new: &'a Row,
    /// Old median over new median: above 1 is faster.
    pub speedup: f64,
    /// True if the runs' 10 % to 90 % ranges are disjoint and the ratio exceeds the noise floor.
    pub significant: bool,
}

/// Returns every measurement that both runs have, in this run's order.
pub fn changes<'a>(old: &'a Record, new: &'a Record) -> Vec<Change<'a>> {
    let noise = [old, new].map(|r| r.meta.noise_floor.median.unwrap_or(0.0)).into_iter().fold(0.0, f64::max);
    let pairs = new.rows.iter().filter_map(|n| old.rows.iter().find(|o| o.key() == n.key()).map(|o| (o, n)));
    pairs
        .filter_map(|(old, new)| {
            let speedup = old.median_s? / new.median_s?;
            let disjoint = old.q10_s? > new.q90_s? || new.q10_s? > old.q90_s?;
            let significant = disjoint && speedup.ln().abs() > noise.ln_1p();
            Some(Change { old, new, speedup, significant })
        })
        .collect()
}

/// Describes the changes beyond the noise: a sentence and a table.
pub fn report(old: &Record, new: &Record) -> String {
    let all = changes(old, new);
    let mut out = format!(
        "Against {} (commit {}): {} measurements in both",
        old.meta.date,
        old.meta.machine.commit,
        all.len()
    );
    if let Some(mean) = geometric_mean(all.iter().map(|c| c.speedup)) {
        out += &format!(", this run {} as fast in the geometric mean", times(Some(mean)));
    }
    out += ".\n";
    let here = |r: &Record| (r.meta.machine.cpu.clone(), r.meta.threads, r.meta.isa.clone());
    if here(old) != here(new) {
        out += &format!("They are not comparable: {:?} against {:?}.\n", here(old), here(new));
    }
    let changed: Vec<_> = all.iter().filter(|c| c.significant).collect();
    if changed.is_empty() {
        return out + "Nothing changed beyond the noise.\n";
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["engine", "layer", "dtype", "rows", "pass", "before", "now", "as fast"]);
    table.add_rows(changed.iter().map(|c| {
        let n = c.new;
        [
            format!("{} r{}", n.engine.name(), n.rank),
            format!("{} {}", n.model, n.layer),
            n.dtype.clone(),
            n.rows.to_string(),
            n.pass.name().to_string(),
            seconds(c.old.median_s),
            seconds(n.median_s),
            times(Some(c.speedup)),
        ]
    }));
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{out}{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::Kind;
    use crate::problem::TimedPasses;
    use crate::record::tests::{record, row};

    #[test]
    fn only_changes_beyond_the_spread_are_reported() {
        let at = |kron, lora| {
            record(vec![
                row(Kind::KronFused, 8, TimedPasses::Both, Some(kron)),
                row(Kind::LoraGemm, 8, TimedPasses::Both, Some(lora)),
            ])
        };
        let (old, new) = (at(0.004, 0.006), at(0.002, 0.0063));
        let all = changes(&old, &new);
        assert_eq!(all.len(), 2);
        assert!((all[0].speedup - 2.0).abs() < 1e-12 && all[0].significant);
        assert!(!all[1].significant);
        let text = report(&old, &new);
        assert!(text.contains("kron-fused r8") && !text.contains("lora-gemm r8"), "{text}");
        assert!(report(&old, &old).contains("Nothing changed"));
    }
}
