//! The counts of the paper's tables, from the same code that plans.

use kron_adapter::plan::{Method, Model, PRESETS, Plan, preset};
use serde::Serialize;

use super::count::grouped;
use super::report::number;
use super::text::{Column, csv, table};
use super::usage;
use crate::{Error, Result};

/// The rank of the paper's Kron-LoRA.
const RANK: usize = 8;

/// The paper's models.
#[derive(Debug, Serialize)]
pub struct Golden {
    /// One per model.
    pub models: Vec<Counts>,
}

/// Kron-LoRA and LoRA on one model.
#[derive(Debug, Serialize)]
pub struct Counts {
    /// Its name.
    pub model: String,
    /// Columns of A, by the paper's rule.
    pub a_in: usize,
    /// Rows of A, by the paper's rule.
    pub a_out: usize,
    /// Kron-LoRA's adapters but the head's.
    pub kron_body: u64,
    /// Kron-LoRA's adapter of the head.
    pub kron_head: u64,
    /// All that is trained with Kron-LoRA.
    pub kron: u64,
    /// LoRA's rank in the paper's comparison.
    pub lora_rank: usize,
    /// LoRA's adapters but the head's.
    pub lora_body: u64,
    /// LoRA's adapter of the head.
    pub lora_head: u64,
    /// All that is trained with LoRA.
    pub lora: u64,
    /// Trained without an adapter.
    pub also_trained: u64,
}

impl Golden {
    /// Counts every preset.
    ///
    /// # Errors
    /// None that a preset can cause.
    pub fn new() -> Result<Self> {
        let models = PRESETS.iter().map(|name| {
            let model = preset(name).ok_or_else(|| Error::usage(format!("{name} is no preset")))?;
            Counts::new(&model)
        });
        Ok(Self { models: models.collect::<Result<_>>()? })
    }

    /// For a reader.
    pub fn table(&self) -> String {
        let legend = "kron r 8, a_in 2, a_out the divisor of the hidden size nearest to hidden / 200 \
                      (arXiv 2508.01961); also: new heads trained without an adapter";
        [table(&COLUMNS, &self.models), legend.into()].join("\n")
    }

    /// One line per model.
    pub fn csv(&self) -> String {
        csv(&COLUMNS, &self.models)
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
        let kron = Plan::new(model, method).map_err(usage)?;
        let lora = Plan::new(model, Method::Lora { rank: lora_rank }).map_err(usage)?;
        let head = |plan: &Plan| {
            let heads = plan.rows.iter().filter(|row| row.linear.name() == "lm_head");
            heads.map(|row| u64::from(row.linear.count()) * row.shape.params() as u64).sum::<u64>()
        };
        let body = |plan: &Plan| number(plan.adapter_params()) - head(plan);
        Ok(Self {
            model: model.name().into(),
            a_in: split.a_in,
            a_out: split.a_out,
            kron_body: body(&kron),
            kron_head: head(&kron),
            kron: number(kron.trained_params()),
            lora_rank,
            lora_body: body(&lora),
            lora_head: head(&lora),
            lora: number(lora.trained_params()),
            also_trained: model.also_trained(),
        })
    }
}

macro_rules! column {
    ($head:literal, $field:ident) => {
        Column {
            head: $head,
            name: stringify!($field),
            number: true,
            show: |row| grouped(row.$field as u128),
            raw: |row| row.$field.to_string(),
        }
    };
}

const COLUMNS: [Column<Counts>; 11] = [
    Column {
        head: "model",
        name: "model",
        number: false,
        show: |row| row.model.clone(),
        raw: |row| row.model.clone(),
    },
    column!("a_in", a_in),
    column!("a_out", a_out),
    column!("kron body", kron_body),
    column!("head", kron_head),
    column!("kron", kron),
    column!("lora r", lora_rank),
    column!("lora body", lora_body),
    column!("head", lora_head),
    column!("lora", lora),
    column!("also", also_trained),
];
