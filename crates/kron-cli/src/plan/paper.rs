//! Parameter counts of the paper's tables, from the code that plans.

use kron_adapter::plan::{AdapterPlan, Method, Model, PRESETS, preset};
use kron_core::Split;
use serde::Serialize;

use super::columns::{Column, csv, table};
use crate::count::{grouped, saturated};
use crate::{Error, Result};

/// The rank of the paper's Kron-LoRA.
const RANK: usize = 8;

/// Counts of all of the paper's models.
#[derive(Debug, Serialize)]
pub struct Golden {
    /// Counts of each model.
    pub models: Vec<Counts>,
}

/// Counts of Kron-LoRA and LoRA on one model.
#[derive(Debug, Serialize)]
pub struct Counts {
    /// Name of the model.
    pub model: String,
    /// Columns of A, by the paper's rule.
    pub a_in: usize,
    /// Rows of A, by the paper's rule.
    pub a_out: usize,
    /// Parameters of Kron-LoRA without the head's adapter.
    pub kron_body: u64,
    /// Parameters of Kron-LoRA's adapter of the head.
    pub kron_head: u64,
    /// All trained parameters with Kron-LoRA.
    pub kron: u64,
    /// LoRA's rank in the paper's comparison.
    pub lora_rank: usize,
    /// Parameters of LoRA without the head's adapter.
    pub lora_body: u64,
    /// Parameters of LoRA's adapter of the head.
    pub lora_head: u64,
    /// All trained parameters with LoRA.
    pub lora: u64,
    /// Parameters trained without an adapter.
    pub also_trained: u64,
}

impl Golden {
    /// Counts every preset.
    ///
    /// # Errors
    /// Never for a preset.
    pub fn new() -> Result<Self> {
        let models = PRESETS.iter().map(|name| {
            let model = preset(name).ok_or_else(|| Error::usage(format!("{name} is not a preset")))?;
            Counts::new(&model)
        });
        Ok(Self { models: models.collect::<Result<_>>()? })
    }

    /// Returns the table with its legend.
    pub fn table(&self) -> String {
        let legend = "kron: r 8, A of a_out × 2, a_out the divisor of the hidden size nearest to \
                      hidden / 200 (arXiv 2508.01961); also: new heads trained without an adapter";
        [table(&COLUMNS, &self.models), legend.into()].join("\n")
    }

    /// Returns CSV with one line per model.
    ///
    /// # Errors
    /// Never for a preset.
    pub fn csv(&self) -> Result<String> {
        csv(&self.models)
    }
}

impl Counts {
    fn new(model: &Model) -> Result<Self> {
        // The paper compares with LoRA-16 on the model whose heads are trained too, LoRA-8 elsewhere.
        let lora_rank = if model.also_trained() > 0 { 16 } else { 8 };
        let method = Method::paper(model, RANK);
        let Method::Kron { split, .. } = method else {
            return Err(Error::usage("the paper's method is Kron-LoRA"));
        };
        let kron = AdapterPlan::new(model, method).map_err(Error::into_usage)?;
        let lora = AdapterPlan::new(model, Method::Lora { rank: lora_rank }).map_err(Error::into_usage)?;
        let head = |plan: &AdapterPlan| {
            let heads = plan.rows.iter().filter(|row| row.linear.name() == "lm_head");
            heads.map(|row| u64::from(row.linear.count()) * row.shape.params() as u64).sum::<u64>()
        };
        let body = |plan: &AdapterPlan| saturated(plan.adapter_params()) - head(plan);
        Ok(Self {
            model: model.name().into(),
            a_in: split.a_in,
            a_out: split.a_out,
            kron_body: body(&kron),
            kron_head: head(&kron),
            kron: saturated(kron.trained_params()),
            lora_rank,
            lora_body: body(&lora),
            lora_head: head(&lora),
            lora: saturated(lora.trained_params()),
            also_trained: model.also_trained(),
        })
    }
}

macro_rules! column {
    ($head:literal, $field:ident) => {
        Column { head: $head, number: true, cell: |row| grouped(row.$field as u128) }
    };
}

const COLUMNS: [Column<Counts>; 10] = [
    Column { head: "model", number: false, cell: |row| row.model.clone() },
    Column { head: "A", number: true, cell: |row| Split { a_out: row.a_out, a_in: row.a_in }.to_string() },
    column!("kron body", kron_body),
    column!("head", kron_head),
    column!("kron", kron),
    column!("lora r", lora_rank),
    column!("lora body", lora_body),
    column!("head", lora_head),
    column!("lora", lora),
    column!("also", also_trained),
];
