//! `kron inspect PATH`: an adapter's format, layers, scales, norms and ranks.
//!
//! Norm, effective rank and spectrum of ΔW are computed from the factors; ΔW is never built.

mod html;

use std::path::PathBuf;
use std::process::ExitCode;

use kron_adapter::algebra::{Delta, effective_rank, scale64};
use kron_adapter::{Output, Format, Loaded};
use kron_adapter::{Layer, ScaleRule};
use kron_core::Outer;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::exit_codes;
use crate::overwriting::check_not_overwriting_files;
use crate::table::{short, table};
use crate::{Result, TextOrJson, progress};

/// Show an adapter's format, layers, scales, norms and ranks.
///
/// Reads files of this project, PEFT folders (LoRA, rsLoRA, LoKr) and LyCORIS files (LoKr).
/// The norm and the effective rank of each layer's ΔW are computed from the factors.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "A is the outer factor, a_out × a_in. ‖ΔW‖ is the root of the sum of squares. The effective rank is\n",
    "exp of the entropy of σ / Σσ over the singular values σ (Roy and Vetterli 2007); the number after\n",
    "\"of\" is the largest rank that the shape allows.\n\n",
    exit_codes!("shown", "the adapter is invalid"),
    "Examples:\n",
    "  kron inspect adapter.safetensors\n",
    "  kron inspect peft-lokr/ --html spectrum.html",
))]
pub struct Args {
    /// Adapter file or PEFT folder
    path: PathBuf,
    /// Also write an HTML page with the spectrum of every layer
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Replace the page when it exists
    #[arg(long, requires = "html")]
    force: bool,
}

/// Printed result.
#[derive(Debug, Serialize)]
pub struct Report {
    path: String,
    format: Format,
    layers: Vec<Row>,
    params: usize,
    target_modules: Vec<String>,
    metadata: std::collections::BTreeMap<String, String>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    module: String,
    d_out: usize,
    d_in: usize,
    a_out: usize,
    a_in: usize,
    /// True when A is \[1\].
    lora: bool,
    /// `None`: the inner factor is full.
    rank: Option<usize>,
    alpha: f32,
    alpha_rank: usize,
    rule: &'static str,
    scale: f64,
    params: usize,
    max_rank: usize,
    norm: f64,
    effective_rank: f64,
    #[serde(skip)]
    spectrum: Vec<f64>,
    #[serde(skip)]
    scaling: String,
}

/// Reads, reports, and returns 0.
///
/// # Errors
/// The adapter cannot be read, or the page cannot be written.
pub fn run(args: &Args, form: TextOrJson) -> Result<ExitCode> {
    args.html.iter().try_for_each(|page| check_not_overwriting_files(&args.path, page))?;
    let report = Report::new(kron_adapter::read(&args.path)?);
    if let Some(path) = &args.html {
        progress::write_output(path, &Output::File(html::page(&report)?.into_bytes()), args.force)?;
    }
    form.print(&report, Report::table)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(loaded: Loaded) -> Self {
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

    fn table(&self) -> String {
        let rows = self.layers.iter().map(|row| {
            let size = format!("{}×{}", row.d_out, row.d_in);
            let split = if row.lora { "LoRA".into() } else { format!("{}×{}", row.a_out, row.a_in) };
            let rank = row.rank.map_or("full".into(), |r| r.to_string());
            let effective = format!("{} of {}", short(row.effective_rank), row.max_rank);
            let numbers = [row.scaling.clone(), row.params.to_string(), short(row.norm), effective];
            [vec![row.module.clone(), size, split, rank], numbers.to_vec()].concat()
        });
        let header = ["module", "layer", "A", "rank", "scale", "parameters", "‖ΔW‖", "effective rank"];
        let mut text = format!(
            "{}: {}, {} layers, {} parameters\n\n{}",
            self.path,
            self.format,
            self.layers.len(),
            self.params,
            table(&header, 1, rows)
        );
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
