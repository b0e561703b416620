//! Runs a schedule on a platform: for every cell, checks each engine, then times them in turn.

use std::sync::Arc;
use std::time::Instant;

use half::{bf16, f16};
use kron_adapter::with_dtype;
use kron_core::{Element, LayerDims, Result, Theta};
use ndarray::Array2;

use crate::check::{Verdict, check};
use crate::engines::Kind;
use crate::machine::Machine;
use crate::oracle::Reference;
use crate::platform::{Measure, Pace, Task, TimeLeft};
use crate::problem::{LayerTask, TimedPasses};
use crate::record::{Meta, Noise, Record, Row};
use crate::schedule::{Entry, Factors, Group, Schedule};
use crate::stats::{median, quantile};
use crate::timing::{SLOW, takes_part};

/// Seconds of a cell beyond its engines' rounds, for sharing out the time.
const CELL_OVERHEAD: f64 = 0.05;

/// Seconds per element of a whole weight beyond its rounds: making it, autotuning, the check.
const WEIGHT_OVERHEAD: f64 = 10e-9;

/// Part of the run's time that may be overdrawn before slow engines are left untimed.
const OVERDRAW: f64 = 1.15;

/// Watches a run.
pub trait Progress {
    /// Announces `total` steps.
    fn start(&mut self, total: usize);
    /// Begins a step.
    fn step(&mut self, what: String);
    /// Reports an engine that does not run, and why.
    fn refused(&mut self, why: String);
    /// Receives the rows of a complete cell.
    fn cell(&mut self, rows: &[Row]);
    /// Receives the record so far when a cell is complete; autotuning and the noise floor are still missing.
    fn so_far(&mut self, record: &Record);
}

/// Measures everything in the schedule.
///
/// # Errors
/// Fails if the platform does; an engine that fails is recorded as wrong.
pub fn run<P>(platform: &mut P, schedule: &Schedule, progress: &mut dyn Progress) -> Result<Record>
where
    P: Measure<f32> + Measure<f16> + Measure<bf16>,
{
    let started = Instant::now();
    progress.start(schedule.groups.iter().map(|g| 2 * g.rows.len() * g.entries.len()).sum());
    let meta = Meta {
        machine: Machine::this(),
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seconds: 0.0,
        threads: schedule.threads,
        isa: platform.describe()?,
        rank: schedule.rank,
        alpha: schedule.alpha,
        rotated_bytes: platform.rotated_bytes(),
        roof: platform.roof(&schedule.dtypes())?,
        gemm: Vec::new(),
        noise_floor: Noise::default(),
    };
    let record = Record { meta, rows: Vec::new() };
    let mut run = Run { platform, schedule, started, record, noise: Vec::new() };
    for (i, group) in schedule.groups.iter().enumerate() {
        with_dtype!(group.dtype, E => run.group::<E>(i, progress)?);
    }
    let Run { mut record, noise, .. } = run;
    record.meta.gemm = platform.choices();
    record.meta.noise_floor = Noise {
        median: Some(median(&noise)).filter(|m| m.is_finite()),
        worst: noise.iter().copied().reduce(f64::max),
        cells: noise.len(),
    };
    record.meta.seconds = started.elapsed().as_secs_f64();
    Ok(record)
}

/// The state of a run.
struct Run<'a, P> {
    platform: &'a mut P,
    schedule: &'a Schedule,
    started: Instant,
    record: Record,
    noise: Vec<f64>,
}

/// An engine of a cell with its results.
struct Candidate<T> {
    /// Forward, then both passes.
    passes: [Timed; 2],
    rows_checked: usize,
    /// The engine and its seconds for both passes; a wrong engine is dropped and not timed.
    ready: Option<(T, f64)>,
    /// The samples of forward taken a second time, for the noise floor.
    again: Vec<f64>,
}

/// One pass of a [`Candidate`].
struct Timed {
    samples: Vec<f64>,
    verdict: Verdict,
    extra_bytes: usize,
}

impl<T> Candidate<T> {
    /// Returns the candidate for an engine that does not run.
    fn refused(rows: usize) -> Self {
        let verdict = Verdict { rel_error: f64::NAN, ..Verdict::default() };
        let passes = [verdict; 2].map(|verdict| Timed { samples: Vec::new(), verdict, extra_bytes: 0 });
        Self { passes, rows_checked: rows, ready: None, again: Vec::new() }
    }

    /// Returns how far apart two timings of the same work lie; `None` if there was only one.
    fn noise(&self) -> Option<f64> {
        let ratio = median(&self.passes[0].samples) / median(&self.again);
        Some((ratio - 1.0).abs()).filter(|noise| noise.is_finite())
    }
}

/// The references of a cell so far, each for a number of rows: engines of one problem share one.
#[derive(Default)]
struct References(Vec<(LayerTask, usize, Reference)>);

impl References {
    fn get<E: Element>(&mut self, task: &Task<E>, set: &crate::data::Set<E>) -> &Reference {
        // Merging changes W, which the check compares itself; its gradient is the adapter's.
        let problem = match task.entry.problem {
            LayerTask::Merge(op) => LayerTask::Adapter(op),
            problem => problem,
        };
        let found = self.0.iter().position(|(p, rows, _)| *p == problem && *rows == set.rows());
        let at = found.unwrap_or_else(|| {
            let weight = task.weight.map(Arc::as_ref);
            self.0.push((problem, set.rows(), Reference::new(&problem, task.theta, weight, set)));
            self.0.len() - 1
        });
        &self.0[at].2
    }
}

impl<P> Run<'_, P> {
    /// Measures every cell of one layer and dtype.
    fn group<E: Element>(&mut self, index: usize, progress: &mut dyn Progress) -> Result<()>
    where
        P: Measure<E>,
    {
        let group = &self.schedule.groups[index];
        let weight = group.weight::<E>();
        let thetas: Vec<Option<Theta>> = group.entries.iter().map(Entry::theta).collect();
        for (cell, &rows) in group.rows.iter().enumerate() {
            let seconds = self.share(index, cell);
            let candidates = self.cell(group, rows, &thetas, weight.as_ref(), seconds, progress)?;
            let first = self.record.rows.len();
            for (entry, candidate) in group.entries.iter().zip(&candidates) {
                for &pass in &self.schedule.passes {
                    let row = self.row(group, rows, entry, pass, candidate);
                    self.record.rows.push(row);
                }
            }
            self.noise.extend(candidates.iter().filter_map(Candidate::noise));
            self.record.compare();
            progress.cell(&self.record.rows[first..]);
            self.record.meta.seconds = self.started.elapsed().as_secs_f64();
            progress.so_far(&self.record);
        }
        Ok(())
    }

    /// Checks and times every engine of a group for `rows` rows in about `seconds`.
    fn cell<E: Element>(
        &mut self,
        group: &Group,
        rows: usize,
        thetas: &[Option<Theta>],
        weight: Option<&Arc<Array2<E>>>,
        seconds: f64,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Candidate<P::Engine>>>
    where
        P: Measure<E>,
    {
        let (begun, name) = (Instant::now(), group.cell_name(rows));
        let mut cell = self.platform.cell(group, rows)?;
        // Engines add into the cell's sets as they warm up, so the check has a set of its own.
        let (fresh, backward) = (group.set(rows, 1), self.schedule.backward());
        let (mut references, mut candidates) = (References::default(), Vec::new());
        for (entry, theta) in group.entries.iter().zip(thetas) {
            progress.step(format!("{name}: checking {}", entry.label()));
            let task = Task { entry, theta: theta.as_ref(), weight, fresh: &fresh, backward };
            let candidate = self.prepare(&mut cell, &task, &mut references).or_else(|e| {
                // A rival that cannot run is no reason to lose the others.
                progress.refused(format!("{name}: {}: {e}", entry.label()));
                self.platform.recover().map(|()| Candidate::refused(rows))
            });
            candidates.push(candidate?);
        }
        let left = (seconds - begun.elapsed().as_secs_f64()).max(0.0);
        self.time(group, &mut cell, &mut candidates, left / group.entries.len() as f64)?;
        group.entries.iter().for_each(|entry| progress.step(format!("{name}: timed {}", entry.label())));
        Ok(candidates)
    }

    /// Prepares an engine, checks its results, and warms it up if they are right.
    fn prepare<E: Element>(
        &mut self,
        cell: &mut P::Cell,
        task: &Task<E>,
        references: &mut References,
    ) -> Result<Candidate<P::Engine>>
    where
        P: Measure<E>,
    {
        let (entry, rows) = (task.entry, task.fresh.rows());
        let limit = self.platform.check_limit(entry, rows, &self.record.meta.roof);
        let rows_checked = limit.map_or(rows, |limit| limit.min(rows));
        let head = (rows_checked < rows).then(|| task.fresh.head(rows_checked));
        let set = head.as_ref().unwrap_or(task.fresh);
        let reference = references.get(task, set);
        let mut engine = self.platform.prepare(cell, task, rows_checked)?;
        let (forward, both) = self.platform.check(&mut engine, |engine| {
            check(engine, &entry.problem, task.theta, set, reference, task.backward)
        })?;
        if rows_checked < rows {
            engine = self.platform.prepare(cell, task, rows)?;
        }
        let passes = [(forward, false), (both, true)].map(|(verdict, backward)| {
            let extra_bytes = self.platform.extra_bytes(&engine, backward, verdict.peak_bytes);
            Timed { samples: Vec::new(), verdict, extra_bytes }
        });
        // An engine that is wrong in either pass is not timed in any.
        let ready = match (forward.ok && both.ok, limit) {
            (false, _) => None,
            (true, Some(_)) => Some((engine, both.seconds * rows as f64 / rows_checked as f64)),
            (true, None) => {
                let seconds = self.platform.warm_up(cell, &mut engine, task)?;
                Some((engine, seconds))
            }
        };
        Ok(Candidate { passes, rows_checked, ready, again: Vec::new() })
    }

    /// Times all engines in interleaved rounds, each for about `share` seconds.
    fn time<E: Element>(
        &mut self,
        group: &Group,
        cell: &mut P::Cell,
        candidates: &mut [Candidate<P::Engine>],
        share: f64,
    ) -> Result<()>
    where
        P: Measure<E>,
    {
        let run = OVERDRAW * self.schedule.seconds - self.started.elapsed().as_secs_f64();
        let pace = |(candidate, entry): (&Candidate<P::Engine>, &Entry)| match &candidate.ready {
            Some((_, seconds)) => self.platform.pace(cell, entry.kind, *seconds, TimeLeft { share, run }),
            None => Pace::default(),
        };
        let paces: Vec<Pace> = candidates.iter().zip(&group.entries).map(pace).collect();
        let all = paces.iter().map(|pace| pace.rounds).max().unwrap_or(0);
        let (count, backward) = (candidates.len(), self.schedule.backward());
        // A different engine goes first in each round: nobody always runs in the same one's wake.
        for (round, i) in (0..all).flat_map(|round| (0..count).map(move |i| (round, (i + round) % count))) {
            let (Pace { rounds, sweep }, candidate) = (paces[i], &mut candidates[i]);
            let Some((engine, seconds)) = &mut candidate.ready else { continue };
            if !takes_part(rounds, round, all) {
                continue;
            }
            let (forward, both) = self.platform.sample(cell, engine, sweep, backward)?;
            candidate.passes[0].samples.push(forward);
            candidate.passes[1].samples.push(both);
            if group.entries[i].kind == Kind::Linear && *seconds <= SLOW {
                candidate.again.push(self.platform.sample(cell, engine, sweep, backward)?.0);
            }
        }
        Ok(())
    }

    /// Returns the part of the time left that a cell gets, in proportion to its ideal algorithms' time.
    fn share(&self, group: usize, cell: usize) -> f64 {
        let roof = &self.record.meta.roof;
        let weight = |g: &Group, rows: usize| -> f64 {
            let one = |e: &Entry| {
                let LayerDims { d_out, d_in } = e.problem.layer();
                let (repeats, elements) =
                    if e.kind.is_dense() { (2.0, d_out as f64 * d_in as f64) } else { (8.0, 0.0) };
                WEIGHT_OVERHEAD * elements
                    + repeats * roof.seconds(e.problem.cost(TimedPasses::Both, rows, g.dtype), g.dtype.name())
            };
            CELL_OVERHEAD + g.entries.iter().map(one).sum::<f64>()
        };
        let groups = &self.schedule.groups[group..];
        let cells = groups.iter().flat_map(|g| g.rows.iter().map(move |&r| weight(g, r)));
        let ahead: Vec<f64> = cells.skip(cell).collect();
        let left = self.schedule.seconds - self.started.elapsed().as_secs_f64();
        left.max(0.0) * ahead[0] / ahead.iter().sum::<f64>()
    }

    /// Returns one pass of an engine as a row of the report.
    fn row<T>(
        &self,
        group: &Group,
        rows: usize,
        entry: &Entry,
        pass: TimedPasses,
        candidate: &Candidate<T>,
    ) -> Row {
        let (roof, dtype) = (&self.record.meta.roof, group.dtype.name());
        let timed = match pass {
            TimedPasses::Forward => &candidate.passes[0],
            TimedPasses::Both => &candidate.passes[1],
        };
        let Factors { rank, a_out, a_in } = entry.factors();
        let cost = entry.problem.cost(pass, rows, group.dtype);
        let quantile = |q| Some(quantile(&timed.samples, q)).filter(|s| s.is_finite());
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
            extra_bytes: timed.extra_bytes,
            rel_error: Some(timed.verdict.rel_error).filter(|e| e.is_finite()),
            ok: timed.verdict.ok,
            speedup: None,
            rounds: timed.samples.len(),
            rows_checked: candidate.rows_checked,
        }
    }
}
