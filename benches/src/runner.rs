//! Runs a plan: for every cell, check each engine, then time them in turn.

use std::sync::Arc;
use std::time::Instant;

use half::{bf16, f16};
use kron_core::{Cpu, Dtype, Element, Result, Theta};
use ndarray::Array2;

use crate::cell::{self, Part};
use crate::data::uniform;
use crate::engines::{Choice, Ingredients, Kind};
use crate::machine::Machine;
use crate::plan::{Entry, Group, Plan};
use crate::problem::Pass;
use crate::record::{GemmChoice, Meta, Noise, Record, Roof, Row};
use crate::{roof, stats};

/// Bytes of the last cache where the system does not tell.
const DEFAULT_CACHE: usize = 32 << 20;

/// Seconds of a cell beyond its engines' rounds, for sharing out the time.
const CELL_OVERHEAD: f64 = 0.05;

/// Seconds per number of a whole weight beyond its rounds: making it, the contest, the check.
const WEIGHT_OVERHEAD: f64 = 10e-9;

/// Seeds of the frozen weight and of every θ.
pub(crate) const WEIGHT_SEED: u64 = 0x57;
pub(crate) const THETA_SEED: u64 = 0x7468;

/// Watches a run.
pub trait Progress {
    /// `total` steps will follow.
    fn start(&mut self, total: usize);
    /// One step begins.
    fn step(&mut self, what: String);
    /// An engine does not run, and why.
    fn refused(&mut self, why: String);
    /// A cell is complete: the rows of both passes.
    fn cell(&mut self, rows: &[Row]);
    /// A layer is complete: the record so far, which lacks what only the whole run has.
    fn layer(&mut self, record: &Record);
}

/// What all cells share.
pub(crate) struct Run<'a> {
    pub plan: &'a Plan,
    pub cpu: Cpu,
    pub roof: Roof,
    /// Bytes of X and Y together in a ring.
    pub rotated: usize,
    pub started: Instant,
    /// Contests already decided.
    pub choices: Vec<(GemmChoice, Choice)>,
    pub noise: Vec<f64>,
}

/// Measures everything in the plan on a pool of its threads.
///
/// # Errors
/// A pool that the system does not grant, or what kron-core refuses.
pub fn run(plan: &Plan, progress: &mut (dyn Progress + Send)) -> std::result::Result<Record, String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(plan.threads).build();
    let pool = pool.map_err(|e| format!("threads = {}: {e}", plan.threads))?;
    pool.install(|| measure(plan, progress)).map_err(|e| e.to_string())
}

fn measure(plan: &Plan, progress: &mut dyn Progress) -> Result<Record> {
    let (started, cpu, machine) = (Instant::now(), Cpu::new(), Machine::this());
    let cache = machine.cache_bytes.unwrap_or(DEFAULT_CACHE);
    let mut dtypes: Vec<Dtype> = plan.groups.iter().map(|g| g.dtype).collect();
    dtypes.sort_by_key(|d| d.name());
    dtypes.dedup();
    progress.start(plan.groups.iter().map(|g| 2 * g.rows.len() * g.entries.len()).sum());
    let roof = roof::measure(cpu.isa(), &dtypes, cache, plan.threads)?;
    let meta = Meta {
        machine,
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seconds: 0.0,
        threads: plan.threads,
        isa: cpu.isa().to_string(),
        rank: plan.rank,
        alpha: plan.alpha,
        rotated_bytes: 2 * cache,
        roof: roof.clone(),
        gemm: Vec::new(),
        noise_floor: Noise::default(),
    };
    let mut record = Record { meta, rows: Vec::new() };
    let mut run =
        Run { plan, cpu, roof, rotated: 2 * cache, started, choices: Vec::new(), noise: Vec::new() };
    for (i, group) in plan.groups.iter().enumerate() {
        match group.dtype {
            Dtype::F32 => run.group::<f32>(i, &mut record, progress)?,
            Dtype::F16 => run.group::<f16>(i, &mut record, progress)?,
            Dtype::Bf16 => run.group::<bf16>(i, &mut record, progress)?,
        }
        record.meta.seconds = started.elapsed().as_secs_f64();
        progress.layer(&record);
    }
    record.meta.gemm = run.choices.into_iter().map(|(name, _)| name).collect();
    record.meta.noise_floor = Noise {
        median: Some(stats::median(&run.noise)).filter(|m| m.is_finite()),
        worst: run.noise.iter().copied().reduce(f64::max),
        cells: run.noise.len(),
    };
    record.meta.seconds = started.elapsed().as_secs_f64();
    Ok(record)
}

impl Run<'_> {
    /// Every cell of one layer and dtype.
    fn group<E: Element>(
        &mut self,
        index: usize,
        record: &mut Record,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let group = &self.plan.groups[index];
        let needs_weight = |e: &Entry| matches!(e.kind, Kind::Linear | Kind::MergePerStep);
        let weight: Option<Arc<Array2<E>>> = group.entries.iter().any(needs_weight).then(|| {
            let (d_out, d_in) = (group.layer.d_out, group.layer.d_in);
            Arc::new(uniform(d_out, d_in, (3.0 / d_in as f32).sqrt(), WEIGHT_SEED))
        });
        // Equal shapes get equal θ: the engines of one adapter solve the same problem.
        let thetas: Vec<Option<Theta>> =
            group.entries.iter().map(|e| e.problem.shape().map(|s| Theta::random(s, THETA_SEED))).collect();
        for (cell, &rows) in group.rows.iter().enumerate() {
            let (cpu, threads) = (self.cpu, self.plan.threads);
            let from = Ingredients { rows, threads, cpu, weight: weight.clone() };
            let seconds = self.share(index, cell);
            let outcomes = cell::run(self, group, &thetas, &from, seconds, progress)?;
            let first = record.rows.len();
            for (entry, outcome) in group.entries.iter().zip(&outcomes) {
                let row = |&pass| {
                    row(&self.roof, group, rows, entry, pass, outcome.pass(pass), outcome.rows_checked)
                };
                record.rows.extend(self.plan.passes.iter().map(row));
            }
            record.compare();
            progress.cell(&record.rows[first..]);
        }
        Ok(())
    }

    /// The part of the time left that this cell gets, by what the ideal algorithms take.
    fn share(&self, group: usize, cell: usize) -> f64 {
        let weight = |g: &Group, rows: usize| -> f64 {
            let one = |e: &Entry| {
                let (d_out, d_in) = e.problem.layer();
                let (repeats, numbers) =
                    if e.kind.is_dense() { (2.0, d_out as f64 * d_in as f64) } else { (8.0, 0.0) };
                WEIGHT_OVERHEAD * numbers
                    + repeats * self.roof.seconds(e.problem.cost(Pass::Both, rows, g.dtype), g.dtype.name())
            };
            CELL_OVERHEAD + g.entries.iter().map(one).sum::<f64>()
        };
        let cells = self.plan.groups[group..].iter().flat_map(|g| g.rows.iter().map(move |&r| weight(g, r)));
        let ahead: Vec<f64> = cells.skip(cell).collect();
        let left = self.plan.seconds - self.started.elapsed().as_secs_f64();
        left.max(0.0) * ahead[0] / ahead.iter().sum::<f64>()
    }
}

/// One engine's line of the report.
pub(crate) fn row(
    roof: &Roof,
    group: &Group,
    rows: usize,
    entry: &Entry,
    pass: Pass,
    part: Part<'_>,
    rows_checked: usize,
) -> Row {
    let (rank, a_out, a_in) = entry.factors();
    let dtype = group.dtype.name();
    let cost = entry.problem.cost(pass, rows, group.dtype);
    let quantile = |q| Some(stats::quantile(part.samples, q)).filter(|s| s.is_finite());
    let median = quantile(0.5);
    Row {
        engine: entry.kind,
        model: group.model.name.clone(),
        layer: group.layer.name.clone(),
        d_out: group.layer.d_out,
        d_in: group.layer.d_in,
        rows,
        dtype: dtype.into(),
        rank,
        a_out,
        a_in,
        params: entry.problem.params(),
        pass,
        median_s: median,
        q10_s: quantile(0.1),
        q90_s: quantile(0.9),
        gbps: median.map(|m| cost.bytes / m / 1e9),
        copy_fraction: median.map(|m| cost.bytes / m / roof.copy_bytes_per_s),
        roof_fraction: median.map(|m| roof.seconds(cost, dtype) / m),
        flops: cost.flops,
        extra_bytes: part.extra_bytes,
        rel_error: Some(part.verdict.rel_error).filter(|e| e.is_finite()),
        ok: part.verdict.ok,
        speedup: None,
        rounds: part.samples.len(),
        rows_checked,
    }
}
