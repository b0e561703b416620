//! Search for the shapes nearest to a budget of parameters.

use kron_adapter::plan::{Budget, Choice, Family, Method, Model, search};
use kron_adapter::text::one_line;
use kron_core::Split;
use serde::Serialize;

use super::columns::{Column, csv, table};
use crate::count::{grouped, saturated};
use crate::{Error, Result};

/// Nearest methods: those of Kron-LoRA, then the best of each other family.
#[derive(Debug, Serialize)]
pub struct Choices {
    /// Name of the model.
    pub model: String,
    /// Budget of trained parameters.
    pub budget: u64,
    /// Kron-LoRA's candidates, nearest first.
    pub choices: Vec<Candidate>,
    /// Nearest LoRA, KronA and LoKr.
    pub others: Vec<Candidate>,
    /// Remarks on the layers, one sentence each.
    pub notes: Vec<String>,
}

/// One method.
#[derive(Debug, Serialize)]
pub struct Candidate {
    /// `kron 16×2 r 8`.
    pub method: String,
    /// Columns of A, for Kron-LoRA.
    pub a_in: Option<usize>,
    /// Rows of A, for Kron-LoRA.
    pub a_out: Option<usize>,
    /// Rank r; `None` for KronA.
    pub rank: Option<usize>,
    /// All trained parameters.
    pub trained_params: u64,
    /// Trained parameters minus the budget.
    pub difference: i64,
    /// Sum over the layers of the largest rank of ΔW.
    pub rank_sum: u64,
    /// True if the split divides every layer.
    pub exact: bool,
}

impl Choices {
    /// Finds the `top` nearest candidates of Kron-LoRA. Splits that do not divide some layer are taken
    /// only if no split divides all layers.
    ///
    /// # Errors
    /// A product of dimensions overflows.
    pub fn new(model: &Model, budget: u64, top: usize, notes: Vec<String>) -> Result<Self> {
        let find = |family| -> Result<Vec<Choice>> {
            let mut found = search(model, family, Budget::Nearest(budget)).map_err(Error::into_usage)?;
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

    /// Returns the tables with their notes.
    pub fn table(&self) -> String {
        let mut lines = vec![
            format!(
                "{}: nearest to {} trained parameters",
                one_line(&self.model),
                grouped(self.budget.into())
            ),
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

    /// Returns CSV with one line per candidate.
    ///
    /// # Errors
    /// Never for candidates of this type.
    pub fn csv(&self) -> Result<String> {
        csv(self.choices.iter().chain(&self.others))
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
        let trained_params = saturated(choice.trained_params);
        let difference = i128::from(trained_params) - i128::from(budget);
        Self {
            method: choice.method.to_string(),
            a_in: split.map(|split| split.a_in),
            a_out: split.map(|split| split.a_out),
            rank,
            trained_params,
            difference: i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX }),
            rank_sum: saturated(choice.rank_sum),
            exact: choice.exact,
        }
    }

    fn signed(&self) -> String {
        let sign = if self.difference < 0 { "−" } else { "+" };
        format!("{sign}{}", grouped(self.difference.unsigned_abs().into()))
    }
}

fn or_empty(number: Option<impl ToString>) -> String {
    number.map_or(String::new(), |n| n.to_string())
}

const COLUMNS: [Column<Candidate>; 6] = [
    Column {
        head: "method",
        number: false,
        cell: |row| format!("{}{}", row.method, if row.exact { "" } else { " *" }),
    },
    Column {
        head: "A",
        number: true,
        cell: |row| or_empty(row.a_out.zip(row.a_in).map(|(a_out, a_in)| Split { a_out, a_in })),
    },
    Column { head: "r", number: true, cell: |row| or_empty(row.rank) },
    Column { head: "trained", number: true, cell: |row| grouped(row.trained_params.into()) },
    Column { head: "off by", number: true, cell: Candidate::signed },
    Column { head: "Σ max rank", number: true, cell: |row| grouped(row.rank_sum.into()) },
];
