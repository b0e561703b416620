//! `cases.toml`: the one table of problems that the suite runs.

use kron_core::{Dropout, DropoutKey, KronOp, KronShape, LayerDims, Scale, Split};
use serde::Deserialize;

/// Method of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Trained A, low-rank B·C.
    Kron,
    /// A = \[1\], frozen.
    Lora,
    /// Trained A, full M.
    Krona,
}

/// One row of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique.
    pub name: String,
    /// Why the row exists.
    pub why: String,
    /// The adapter.
    pub kind: Kind,
    /// Output width of the layer.
    pub d_out: usize,
    /// Input width of the layer.
    pub d_in: usize,
    /// Rows of A.
    #[serde(default = "one")]
    pub a_out: usize,
    /// Columns of A.
    #[serde(default = "one")]
    pub a_in: usize,
    /// Absent for KronA.
    pub rank: Option<usize>,
    /// Row counts to run.
    pub rows: Vec<usize>,
    /// s.
    pub scale: f32,
    /// Probability of dropping an element of X.
    #[serde(default)]
    pub dropout: f32,
    /// Row stride minus width, for every matrix of activations.
    #[serde(default)]
    pub pad: usize,
}

fn one() -> usize {
    1
}

impl Case {
    /// The shape.
    ///
    /// # Panics
    /// A row that makes no legal shape.
    pub fn shape(&self) -> KronShape {
        let shape = match (self.kind, self.rank) {
            (Kind::Kron, Some(r)) => KronShape::kron(
                LayerDims { d_out: self.d_out, d_in: self.d_in },
                Split { a_out: self.a_out, a_in: self.a_in },
                r,
            ),
            (Kind::Lora, Some(r)) => KronShape::lora(LayerDims { d_out: self.d_out, d_in: self.d_in }, r),
            (Kind::Krona, None) => KronShape::krona(
                LayerDims { d_out: self.d_out, d_in: self.d_in },
                Split { a_out: self.a_out, a_in: self.a_in },
            ),
            (kind, rank) => panic!("{}: {kind:?} with rank {rank:?}", self.name),
        };
        shape.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// The op.
    ///
    /// # Panics
    /// As [`Case::shape`], and a scale or dropout out of range.
    pub fn op(&self) -> KronOp {
        let scale = Scale::new(self.scale).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let dropout = Dropout::new(self.dropout).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        KronOp::new(self.shape(), scale).with_dropout(dropout)
    }

    /// The mask's key; `None` where the row has no dropout.
    pub fn key(&self) -> Option<DropoutKey> {
        (self.dropout > 0.0).then_some(DropoutKey { seed: 0x0123_4567_89ab_cdef, offset: 0xfeed_0000_0007 })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

/// Every row of the table.
///
/// # Panics
/// A table that does not parse.
pub fn all() -> Vec<Case> {
    let table: Table = toml::from_str(include_str!("../cases.toml")).expect("cases.toml is legal TOML");
    table.case
}

/// Rows that reach every kernel, few and small enough for a tool that slows each access down.
const FEW: [&str; 25] = [
    "distilbert",
    "whole-rank-4",
    "whole-rank-8",
    "whole-rank-16",
    "whole-rank-32",
    "whole-rank-64",
    "whole-rank-128",
    "whole-lora",
    "whole-lora-4",
    "whole-lora-16",
    "whole-column-32",
    "whole-columns-4",
    "whole-columns-8",
    "whole-columns-16",
    "whole-columns-32",
    "whole-wide-4",
    "whole-wide-8",
    "whole-wide-16",
    "rank-3",
    "rank-13",
    "rank-24",
    "krona-pad-dropout",
    "lora",
    "both-1",
    "scale-negative",
];

/// The few rows that run under a sanitizer.
///
/// # Panics
/// Panics as [`case_by_name`] does.
pub fn few() -> Vec<Case> {
    FEW.map(case_by_name).to_vec()
}

/// The row of that name.
///
/// # Panics
/// No such row.
pub fn case_by_name(name: &str) -> Case {
    all().into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("cases.toml has no {name}"))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use kron_core::{Dtype, Pass};
    use kron_kernels::{LaunchPlan, Problem};

    use super::*;

    #[test]
    fn every_row_is_legal_named_once_and_says_why() {
        let mut names = HashSet::new();
        for case in all() {
            case.op();
            assert!(names.insert(case.name.clone()), "{} appears twice", case.name);
            assert!(case.why.len() > 15 && !case.rows.is_empty(), "{} says why and has rows", case.name);
        }
    }

    /// The names in the plans of a case, in every dtype.
    fn kernels_of(case: &Case) -> BTreeSet<String> {
        let s = case.shape();
        let mut names = BTreeSet::new();
        for (dtype, rows) in Dtype::ALL.into_iter().flat_map(|d| case.rows.iter().map(move |&n| (d, n))) {
            let whole = |width: usize| ((width + case.pad) * dtype.size()).is_multiple_of(16);
            let aligned = whole(s.d_in()) && whole(s.d_out());
            let passes = [Pass::Forward, Pass::Backward { dx: true }].map(|pass| (pass, rows));
            for (pass, rows) in passes.into_iter().chain([(Pass::Merge, s.d_out())]) {
                let problem = Problem { shape: s, dtype, pass, rows, accumulate: true, aligned };
                let plan = LaunchPlan::new(&problem).expect("legal");
                names.extend(plan.steps.iter().map(|step| step.kernel.to_string()));
            }
        }
        names
    }

    /// All kernels by name, every kind, odd sizes, padding and dropout.
    #[test]
    fn the_few_reach_every_kernel() {
        let cases = few();
        // Kernels over segments and groups have calls and tests of their own.
        let many = ["kron_sort", "kron_stack", "kron_split", "kron_join"];
        let single = |name: &String| !many.contains(&name.as_str()) && !name.ends_with("_segments");
        let every: BTreeSet<String> =
            kron_kernels::kernels().map(|name| name.to_string()).filter(single).collect();
        assert_eq!(cases.iter().flat_map(kernels_of).collect::<BTreeSet<_>>(), every);
        let whole = |c: &Case| kernels_of(c).iter().any(|name| name.contains("_bf16_r"));
        let has = |what: &str, f: &dyn Fn(&Case) -> bool| assert!(cases.iter().any(f), "none has {what}");
        let names = |c: &Case, all: [&str; 2]| all.iter().all(|&name| kernels_of(c).contains(name));
        has("the parts of an A on tensor cores, to add up", &|c| {
            c.kind == Kind::Kron && names(c, ["kron_dy_bf16_n8", "kron_reduce"])
        });
        for kind in [Kind::Kron, Kind::Lora, Kind::Krona] {
            has(&format!("{kind:?}"), &|c| c.kind == kind);
        }
        for fast in [true, false] {
            has("padding", &|c| whole(c) == fast && c.pad > 0);
            has("dropout", &|c| whole(c) == fast && c.dropout > 0.0);
        }
        has("odd sizes", &|c| c.shape().c_in() % 2 == 1 && c.shape().b_out() % 2 == 1);
        has("no rows", &|c| c.rows.contains(&0));
        assert!(
            cases.iter().all(|c| c.rows.iter().all(|&n| n <= 130)),
            "more than a sanitizer is quick with"
        );
    }

    /// The table may not quietly lose what the suite claims to cover.
    #[test]
    fn the_table_covers_what_it_promises() {
        let cases = all();
        let has = |what: &str, f: &dyn Fn(&Case) -> bool| {
            assert!(cases.iter().any(f), "no case has {what}");
        };
        for rank in [1, 2, 3, 4, 5, 8, 13, 16, 31, 64, 128, 200, 256] {
            has(&format!("rank {rank}"), &|c| c.rank == Some(rank));
        }
        for rows in [0, 1, 2, 3, 5, 7, 17, 33, 65, 130] {
            has(&format!("{rows} rows"), &|c| c.rows.contains(&rows));
        }
        for kind in [Kind::Kron, Kind::Lora, Kind::Krona] {
            has(&format!("{kind:?}"), &|c| c.kind == kind);
            has(&format!("{kind:?} with dropout"), &|c| c.kind == kind && c.dropout > 0.0);
            has(&format!("{kind:?} with padding"), &|c| c.kind == kind && c.pad > 0);
        }
        has("a_in 1 with a_out > 1", &|c| c.a_in == 1 && c.a_out > 1);
        has("a_out 1 with a_in > 1", &|c| c.a_out == 1 && c.a_in > 1);
        has("odd c_in and b_out", &|c| c.shape().c_in() % 2 == 1 && c.shape().b_out() % 2 == 1);
        has("c_in 1", &|c| c.shape().c_in() == 1);
        has("b_out 1", &|c| c.shape().b_out() == 1);
        has("a 64 × 64 outer factor", &|c| (c.a_out, c.a_in) == (64, 64));
        has("the paper's (2, 16)", &|c| (c.a_in, c.a_out) == (2, 16));
        has("scale 1", &|c| c.scale == 1.0);
        has("a negative scale", &|c| c.scale < 0.0);
    }
}
