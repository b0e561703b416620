//! Result of `kron inspect`, and its table.

use std::collections::BTreeMap;

use kron_adapter::algebra::{Delta, effective_rank, scale64};
use kron_adapter::combine::sums_as_lora;
use kron_adapter::limits::{Cost, Limits, made_bytes, shares, size, work};
use kron_adapter::text::one_line;
use kron_adapter::{Format, Layer, Loaded, ScaleRule, TrainedTensor};
use kron_core::Outer;
use serde::Serialize;

use crate::batches::in_batches;
use crate::choice::left_out;
use crate::table::{short, table};
use crate::{Result, progress};

/// Columns of the table of layers.
pub(super) const HEADER: [&str; 8] =
    ["module", "layer", "A", "rank", "scale", "parameters", "‖ΔW‖", "effective rank"];

/// Columns of the table of trained tensors.
pub(super) const TRAINED_HEADER: [&str; 3] = ["trained tensor", "shape", "parameters"];

/// Printed result.
#[derive(Debug, Serialize)]
pub struct Report {
    pub(super) path: String,
    format: Format,
    pub(super) layers: Vec<Row>,
    params: usize,
    pub(super) trained_tensors: Vec<TrainedRow>,
    target_modules: Vec<String>,
    metadata: BTreeMap<String, String>,
    pub(super) notes: Vec<String>,
    /// Tensors or modules of the file that were not read.
    left_out: Vec<String>,
}

/// Tensor trained beside the factors.
#[derive(Debug, Serialize)]
pub(super) struct TrainedRow {
    name: String,
    shape: Vec<usize>,
    params: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) module: String,
    d_out: usize,
    d_in: usize,
    a_out: usize,
    a_in: usize,
    /// Number of terms of a sum, whose sizes and scale are those of its first.
    terms: usize,
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
    /// `None` where the singular values take more work than the file may.
    pub(super) effective_rank: Option<f64>,
    #[serde(skip)]
    pub(super) spectrum: Vec<f64>,
    #[serde(skip)]
    scaling: String,
}

impl Report {
    /// Computes norms and ranks of all layers.
    ///
    /// # Errors
    /// The norms take more memory or work than the file may.
    pub(super) fn new(loaded: Loaded) -> Result<Self> {
        let Loaded { path, bytes, mut limits, format, adapter, mut notes, left_out, .. } = loaded;
        // A sum of terms has the norm and the ranks of the equal LoRA.
        let summed = sums_as_lora(&adapter, None, &mut limits)?;
        let bar = progress::items(summed.layers().len(), "layers");
        let grants = grants(summed.layers(), &mut limits)?;
        let mut layers = in_batches(
            &grants,
            |grant| grant.bytes,
            limits.bytes.left(),
            |grant| {
                let row = Row::new(grant);
                bar.inc(1);
                row
            },
        );
        bar.finish_and_clear();
        let sums = adapter.layers().chunk_by(|one, next| one.module() == next.module());
        layers
            .iter_mut()
            .zip(sums)
            .filter(|(_, terms)| terms.len() > 1)
            .for_each(|(row, terms)| row.sum(terms));
        notes.extend(without_spectrum(&layers, bytes));
        Ok(Self {
            path,
            format,
            layers,
            params: adapter.params(),
            trained_tensors: adapter.trained_tensors().iter().map(TrainedRow::new).collect(),
            target_modules: adapter.target_modules().to_vec(),
            metadata: adapter.metadata().clone(),
            notes,
            left_out,
        })
    }

    /// Format and totals in one line.
    pub(super) fn summary(&self) -> String {
        let summary = format!("{}, {} layers, {} parameters", self.format, self.layers.len(), self.params);
        let params: usize = self.trained_tensors.iter().map(|row| row.params).sum();
        match self.trained_tensors.len() {
            0 => summary,
            count => format!("{summary}; trained tensors beside them: {count}, {params} parameters"),
        }
    }

    /// Cells of the table under [`TRAINED_HEADER`].
    pub(super) fn trained_rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.trained_tensors.iter().map(|row| {
            let sides: Vec<String> = row.shape.iter().map(usize::to_string).collect();
            vec![row.name.clone(), sides.join("×"), row.params.to_string()]
        })
    }

    /// Cells of the table under [`HEADER`].
    pub(super) fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.layers.iter().map(|row| {
            let size = format!("{}×{}", row.d_out, row.d_in);
            let split = if row.lora { "LoRA".into() } else { format!("{}×{}", row.a_out, row.a_in) };
            let split = if row.terms > 1 { format!("{} × {split}", row.terms) } else { split };
            let rank = row.rank.map_or("full".into(), |r| r.to_string());
            let effective = row.effective_rank.map_or("–".into(), short);
            let effective = format!("{effective} of {}", row.max_rank);
            let rest = [row.scaling.clone(), row.params.to_string(), short(row.norm), effective];
            [vec![row.module.clone(), size, split, rank], rest.to_vec()].concat()
        })
    }

    /// Returns the report as text.
    pub(super) fn table(&self) -> String {
        let mut text =
            format!("{}: {}\n\n{}", one_line(&self.path), self.summary(), table(&HEADER, 1, self.rows()));
        if !self.trained_tensors.is_empty() {
            text += &format!("\n\n{}", table(&TRAINED_HEADER, 1, self.trained_rows()));
        }
        for note in &self.notes {
            text += &format!("\n\nnote: {}", one_line(note));
        }
        text + &left_out(&self.left_out)
    }
}

/// A layer, and what its row may take.
struct Grant<'a> {
    layer: &'a Layer,
    /// Multiply-adds of its singular values; 0 where memory does not suffice for them.
    work: u128,
    /// Bytes that its row takes at one time.
    bytes: u128,
}

/// Spends the norms of all layers, and shares what is left among the layers whose singular values fit into
/// memory: it suffices, too, where a large factor is of low rank.
fn grants<'a>(layers: &'a [Layer], limits: &mut Limits) -> Result<Vec<Grant<'a>>> {
    for layer in layers {
        let (what, cost) = (format!("the norm of layer {}", layer.module()), Delta::norm_cost(layer.shape()));
        limits.bytes.check(&what, cost.bytes)?;
        limits.work.spend(&what, cost.work)?;
    }
    let costs = layers.iter().map(|layer| Delta::singular_cost(layer.shape()));
    let fits = |cost: &Cost| cost.bytes <= limits.bytes.left().into();
    let costs: Vec<Cost> = costs.map(|cost| if fits(&cost) { cost } else { Cost::default() }).collect();
    let work: Vec<u128> = costs.iter().map(|cost| cost.work).collect();
    let shares = shares(limits.work.left(), &work);
    let grants = layers.iter().zip(costs).zip(shares).map(|((layer, cost), work)| {
        let bytes = cost.bytes.max(Delta::norm_cost(layer.shape()).bytes);
        Grant { layer, work, bytes }
    });
    Ok(grants.collect())
}

/// Returns a note on the layers whose singular values were not computed.
fn without_spectrum(rows: &[Row], bytes: u64) -> Option<String> {
    let mut without = rows.iter().filter(|row| row.effective_rank.is_none());
    let first = &without.next()?.module;
    let others = match without.count() {
        0 => String::new(),
        count => format!(" and {count} more layers"),
    };
    Some(format!(
        "no effective rank and no spectrum of {first}{others}: a file of {} may take {:.1e} multiply-adds and {}, and theirs would take more",
        size(bytes.into()),
        work(bytes) as f64,
        size(made_bytes(bytes).into())
    ))
}

impl TrainedRow {
    fn new(tensor: &TrainedTensor) -> Self {
        let (name, shape) = (tensor.name().into(), tensor.shape().to_vec());
        Self { name, shape, params: tensor.values().len() }
    }
}

impl Row {
    fn new(&Grant { layer, work, .. }: &Grant) -> Self {
        let (shape, scaling, delta) = (layer.shape(), layer.scaling(), Delta::new(layer));
        let spectrum = if work == 0 { None } else { delta.singular_values_within(work) };
        let norm = spectrum.as_ref().map(|spectrum| spectrum.iter().map(|s| s * s).sum::<f64>().sqrt());
        Self {
            module: layer.module().into(),
            d_out: shape.d_out(),
            d_in: shape.d_in(),
            a_out: shape.a_out(),
            a_in: shape.a_in(),
            terms: 1,
            lora: shape.outer() == Outer::One,
            rank: shape.rank(),
            alpha: scaling.alpha(),
            alpha_rank: scaling.rank(),
            rule: name(scaling.rule()),
            scale: scale64(scaling),
            params: shape.params(),
            max_rank: shape.max_rank(),
            norm: norm.unwrap_or_else(|| delta.norm()),
            effective_rank: spectrum.as_deref().map(effective_rank),
            spectrum: spectrum.unwrap_or_default(),
            scaling: scaling.to_string(),
        }
    }

    /// Gives the row of a sum's LoRA the sizes of the sum.
    fn sum(&mut self, terms: &[Layer]) {
        let (shape, scaling) = (terms[0].shape(), terms[0].scaling());
        (self.a_out, self.a_in, self.lora) = (shape.a_out(), shape.a_in(), shape.outer() == Outer::One);
        (self.terms, self.rank) = (terms.len(), shape.rank());
        self.params = terms.iter().map(|term| term.shape().params()).sum();
        let ranks: usize = terms.iter().map(|term| term.shape().max_rank()).sum();
        self.max_rank = ranks.min(self.d_out).min(self.d_in);
        (self.alpha, self.alpha_rank, self.rule) = (scaling.alpha(), scaling.rank(), name(scaling.rule()));
        (self.scale, self.scaling) = (scale64(scaling), scaling.to_string());
    }
}

/// Returns the rule's name in a report.
const fn name(rule: ScaleRule) -> &'static str {
    match rule {
        ScaleRule::AlphaOverR => "alpha/r",
        ScaleRule::AlphaOverSqrtR => "alpha/sqrt(r)",
    }
}
