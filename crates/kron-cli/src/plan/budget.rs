//! The shapes nearest to a budget.

use kron_adapter::plan::{Budget, Choice, Family, Method, Model, search};
use serde::Serialize;

use super::count::grouped;
use super::report::number;
use super::text::{Column, csv, table};
use super::usage;
use crate::Result;

/// What comes nearest, Kron-LoRA first and then the best of each other family.
#[derive(Debug, Serialize)]
pub struct Choices {
    /// The model's name.
    pub model: String,
    /// The budget.
    pub budget: u64,
    /// Nearest first.
    pub choices: Vec<Candidate>,
    /// The nearest LoRA, KronA and LoKr.
    pub others: Vec<Candidate>,
    /// What a reader must know about the layers.
    pub notes: Vec<String>,
}

/// One method.
#[derive(Debug, Serialize)]
pub struct Candidate {
    /// `kron (2, 16) r 8`.
    pub method: String,
    /// Columns of A, for Kron-LoRA.
    pub a_in: Option<usize>,
    /// Rows of A, for Kron-LoRA.
    pub a_out: Option<usize>,
    /// r, where there is one.
    pub rank: Option<usize>,
    /// All trained parameters.
    pub trained_params: u64,
    /// Over or under the budget.
    pub difference: i64,
    /// Sum over the layers of the largest rank of ΔW.
    pub rank_sum: u64,
    /// Whether the split divides every layer.
    pub exact: bool,
}

impl Choices {
    /// The `top` nearest of Kron-LoRA; those that some layer reduces only where there are no others.
    ///
    /// # Errors
    /// Dimensions whose product overflows.
    pub fn new(model: &Model, budget: u64, top: usize, notes: Vec<String>) -> Result<Self> {
        let find = |family| -> Result<Vec<Choice>> {
            let mut found = search(model, family, Budget::Nearest(budget)).map_err(usage)?;
            if found.iter().any(|choice| choice.exact) {
                found.retain(|choice| choice.exact);
            }
            Ok(found)
        };
        let candidate = |choice: &Choice| Candidate::new(choice, budget);
        let choices = find(Family::Kron)?.iter().take(top).map(candidate).collect();
        let mut others = Vec::new();
        for family in [Family::Lora, Family::Krona, Family::Lokr] {
            others.extend(find(family)?.first().map(candidate));
        }
        Ok(Self { model: model.name().into(), budget, choices, others, notes })
    }

    /// For a reader.
    pub fn table(&self) -> String {
        let mut lines = vec![
            format!("{}: nearest to {} trained parameters", self.model, grouped(self.budget.into())),
            String::new(),
            table(&COLUMNS, &self.choices),
            "\nthe nearest of the other methods\n".into(),
            table(&COLUMNS, &self.others),
        ];
        if self.choices.iter().chain(&self.others).any(|candidate| !candidate.exact) {
            lines.push("*: on some layer the split is reduced to a divisor".into());
        }
        lines.extend(self.notes.iter().cloned());
        lines.join("\n")
    }

    /// All candidates.
    pub fn csv(&self) -> String {
        let columns = [&COLUMNS[..], &[EXACT]].concat();
        let (ours, others) = (csv(&columns, &self.choices), csv(&columns, &self.others));
        let rows = others.lines().skip(1).map(|line| format!("\n{line}"));
        rows.fold(ours, |all, line| all + &line)
    }
}

impl Candidate {
    fn new(choice: &Choice, budget: u64) -> Self {
        let split = match choice.method {
            Method::Kron { split, .. } => Some(split),
            _ => None,
        };
        let rank = match choice.method {
            Method::Kron { rank, .. } | Method::Lora { rank } | Method::Lokr { rank, .. } => Some(rank),
            Method::Krona { .. } => None,
        };
        let trained_params = number(choice.trained_params);
        let difference = i128::from(trained_params) - i128::from(budget);
        Self {
            method: choice.method.to_string(),
            a_in: split.map(|split| split.a_in),
            a_out: split.map(|split| split.a_out),
            rank,
            trained_params,
            difference: i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX }),
            rank_sum: number(choice.rank_sum),
            exact: choice.exact,
        }
    }

    fn signed(&self) -> String {
        let sign = if self.difference < 0 { "−" } else { "+" };
        format!("{sign}{}", grouped(self.difference.unsigned_abs().into()))
    }
}

fn or_empty(number: Option<usize>) -> String {
    number.map_or(String::new(), |n| n.to_string())
}

const COLUMNS: [Column<Candidate>; 7] = [
    Column {
        head: "method",
        name: "method",
        number: false,
        show: |row| format!("{}{}", row.method, if row.exact { "" } else { " *" }),
        raw: |row| row.method.clone(),
    },
    Column {
        head: "a_in",
        name: "a_in",
        number: true,
        show: |row| or_empty(row.a_in),
        raw: |row| or_empty(row.a_in),
    },
    Column {
        head: "a_out",
        name: "a_out",
        number: true,
        show: |row| or_empty(row.a_out),
        raw: |row| or_empty(row.a_out),
    },
    Column {
        head: "r",
        name: "rank",
        number: true,
        show: |row| or_empty(row.rank),
        raw: |row| or_empty(row.rank),
    },
    Column {
        head: "trained",
        name: "trained_params",
        number: true,
        show: |row| grouped(row.trained_params.into()),
        raw: |row| row.trained_params.to_string(),
    },
    Column {
        head: "off by",
        name: "difference",
        number: true,
        show: Candidate::signed,
        raw: |row| row.difference.to_string(),
    },
    Column {
        head: "Σ max rank",
        name: "rank_sum",
        number: true,
        show: |row| grouped(row.rank_sum.into()),
        raw: |row| row.rank_sum.to_string(),
    },
];

/// A star in the table.
const EXACT: Column<Candidate> = Column {
    head: "exact",
    name: "exact",
    number: false,
    show: |row| row.exact.to_string(),
    raw: |row| row.exact.to_string(),
};
