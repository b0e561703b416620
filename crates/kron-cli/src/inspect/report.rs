//! Result of `kron inspect`, and its table.

use std::collections::BTreeMap;

use kron_adapter::algebra::{Delta, effective_rank, scale64};
use kron_adapter::{Format, Layer, Loaded, ScaleRule};
use kron_core::Outer;
use rayon::prelude::*;
use serde::Serialize;

use crate::progress;
use crate::table::{short, table};

/// Columns of the table of layers.
pub(super) const HEADER: [&str; 8] =
    ["module", "layer", "A", "rank", "scale", "parameters", "‖ΔW‖", "effective rank"];

/// Printed result.
#[derive(Debug, Serialize)]
pub struct Report {
    pub(super) path: String,
    format: Format,
    pub(super) layers: Vec<Row>,
    params: usize,
    target_modules: Vec<String>,
    metadata: BTreeMap<String, String>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) module: String,
    d_out: usize,
    d_in: usize,
    a_out: usize,
    a_in: usize,
    /// True when A is \[1\].
    lora: bool,
    /// Rank r; `None` where the inner factor is full.
    rank: Option<usize>,
    alpha: f32,
    alpha_rank: usize,
    rule: &'static str,
    scale: f64,
    params: usize,
    pub(super) max_rank: usize,
    norm: f64,
    pub(super) effective_rank: f64,
    #[serde(skip)]
    pub(super) spectrum: Vec<f64>,
    #[serde(skip)]
    scaling: String,
}

impl Report {
    /// Computes norms and ranks of all layers.
    pub(super) fn new(loaded: Loaded) -> Self {
        let Loaded { path, format, adapter, notes, .. } = loaded;
        let bar = progress::items(adapter.layers().len(), "layers");
        let layers = adapter.layers().par_iter().map(|layer| {
            let row = Row::new(layer);
            bar.inc(1);
            row
        });
        Self {
            path,
            format,
            layers: layers.collect(),
            params: adapter.params(),
            target_modules: adapter.target_modules().to_vec(),
            metadata: adapter.metadata().clone(),
            notes,
        }
    }

    /// Format and totals in one line.
    pub(super) fn summary(&self) -> String {
        format!("{}, {} layers, {} parameters", self.format, self.layers.len(), self.params)
    }

    /// Cells of the table under [`HEADER`].
    pub(super) fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.layers.iter().map(|row| {
            let size = format!("{}×{}", row.d_out, row.d_in);
            let split = if row.lora { "LoRA".into() } else { format!("{}×{}", row.a_out, row.a_in) };
            let rank = row.rank.map_or("full".into(), |r| r.to_string());
            let effective = format!("{} of {}", short(row.effective_rank), row.max_rank);
            let rest = [row.scaling.clone(), row.params.to_string(), short(row.norm), effective];
            [vec![row.module.clone(), size, split, rank], rest.to_vec()].concat()
        })
    }

    /// Returns the report as text.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{}: {}\n\n{}", self.path, self.summary(), table(&HEADER, 1, self.rows()));
        for note in &self.notes {
            text += &format!("\n\nnote: {note}");
        }
        text
    }
}

impl Row {
    fn new(layer: &Layer) -> Self {
        let (shape, scaling) = (layer.shape(), layer.scaling());
        let spectrum = Delta::new(layer).singular_values();
        Self {
            module: layer.module().into(),
            d_out: shape.d_out(),
            d_in: shape.d_in(),
            a_out: shape.a_out(),
            a_in: shape.a_in(),
            lora: shape.outer() == Outer::One,
            rank: shape.rank(),
            alpha: scaling.alpha(),
            alpha_rank: scaling.rank(),
            rule: match scaling.rule() {
                ScaleRule::AlphaOverR => "alpha/r",
                ScaleRule::AlphaOverSqrtR => "alpha/sqrt(r)",
            },
            scale: scale64(scaling),
            params: shape.params(),
            max_rank: shape.max_rank(),
            norm: spectrum.iter().map(|s| s * s).sum::<f64>().sqrt(),
            effective_rank: effective_rank(&spectrum),
            spectrum,
            scaling: scaling.to_string(),
        }
    }
}
