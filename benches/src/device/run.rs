//! Runs a plan on a device: for every cell, check each engine, then time them in turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::CudaGraph;
use half::{bf16, f16};
use kron_core::{Dtype, Error, Result, Theta};
use kron_kernels::Gpu;
use ndarray::Array2;

use super::engines::Engine;
use super::gpu::{Buffers, Device, Memory, Number, failed};
use super::program::{Buffer, Program};
use super::roof;
use crate::cell::{self, Part, Truths};
use crate::check::{self, Verdict};
use crate::data::{Set, cold_sets, uniform};
use crate::engines::Kind;
use crate::machine::Machine;
use crate::plan::{Entry, Group, Plan};
use crate::problem::Pass;
use crate::record::{Meta, Noise, Record};
use crate::runner::{self, Progress, THETA_SEED, WEIGHT_SEED};
use crate::stats;

/// Bytes of X and Y together in a sweep of more than one set: more than any cache holds.
const ROTATED: usize = 256 << 20;
/// Sets of a sweep at most; where more would be needed, a sample is one set.
const MOST_SETS: usize = 32;
/// Samples of every engine.
const ROUNDS: usize = 15;

/// That there is such a device to measure on.
///
/// # Errors
/// No driver, or no device of that number.
pub fn check(ordinal: usize) -> Result<(), String> {
    match Gpu::count() {
        Ok(count) if ordinal < count => Ok(()),
        Ok(count) => Err(format!("device is cuda:{ordinal}, but this machine has {count} CUDA devices")),
        Err(e) => Err(format!("device is cuda:{ordinal}, but there is {e}")),
    }
}

/// Measures everything in the plan on CUDA device `ordinal`.
///
/// # Errors
/// No such device, or what it refuses.
pub fn run(plan: &Plan, ordinal: usize, progress: &mut dyn Progress) -> Result<Record, String> {
    measure(plan, ordinal, progress).map_err(|e| e.to_string())
}

fn measure(plan: &Plan, ordinal: usize, progress: &mut dyn Progress) -> Result<Record> {
    let started = Instant::now();
    let mut device = Device::open(ordinal)?;
    progress.start(plan.groups.iter().map(|g| g.rows.len() * g.entries.len()).sum());
    let mut dtypes: Vec<Dtype> = plan.groups.iter().map(|g| g.dtype).collect();
    dtypes.sort_by_key(|d| d.name());
    dtypes.dedup();
    let meta = Meta {
        machine: Machine::this(),
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seconds: 0.0,
        threads: plan.threads,
        isa: format!("cuda:{ordinal}, {}", device.name()?),
        rank: plan.rank,
        alpha: plan.alpha,
        rotated_bytes: ROTATED,
        roof: roof::measure(&mut device, &dtypes)?,
        gemm: Vec::new(),
        noise_floor: Noise::default(),
    };
    let mut record = Record { meta, rows: Vec::new() };
    let mut noise = Vec::new();
    for g in &plan.groups {
        match g.dtype {
            Dtype::F32 => group::<f32>(&mut device, plan, g, &mut record, &mut noise, progress)?,
            Dtype::F16 => group::<f16>(&mut device, plan, g, &mut record, &mut noise, progress)?,
            Dtype::Bf16 => group::<bf16>(&mut device, plan, g, &mut record, &mut noise, progress)?,
        }
        record.meta.seconds = started.elapsed().as_secs_f64();
        progress.layer(&record);
    }
    record.meta.noise_floor = Noise {
        median: Some(stats::median(&noise)).filter(|m| m.is_finite()),
        worst: noise.iter().copied().reduce(f64::max),
        cells: noise.len(),
    };
    record.meta.seconds = started.elapsed().as_secs_f64();
    Ok(record)
}

/// Every cell of one layer and dtype.
fn group<E: Number>(
    device: &mut Device,
    plan: &Plan,
    group: &Group,
    record: &mut Record,
    noise: &mut Vec<f64>,
    progress: &mut dyn Progress,
) -> Result<()> {
    let needs_weight = |e: &Entry| matches!(e.kind, Kind::Linear | Kind::MergePerStep);
    let weight: Option<Arc<Array2<E>>> = group.entries.iter().any(needs_weight).then(|| {
        let (d_out, d_in) = (group.layer.d_out, group.layer.d_in);
        Arc::new(uniform(d_out, d_in, (3.0 / d_in as f32).sqrt(), WEIGHT_SEED))
    });
    let thetas: Vec<Option<Theta>> =
        group.entries.iter().map(|e| e.problem.shape().map(|s| Theta::random(s, THETA_SEED))).collect();
    for &rows in &group.rows {
        let mut cell = Cell::new(device, plan, group, rows)?;
        for (entry, theta) in group.entries.iter().zip(&thetas) {
            let name = format!("{} {} {} × {rows}", group.model.name, group.layer.name, group.dtype);
            progress.step(format!("{name}: {}", entry.label()));
            let arm = cell.prepare(device, entry, theta.as_ref(), weight.as_ref()).or_else(|e| {
                // What the library of a rival refuses is no reason to lose the others.
                progress.refused(format!("{name}: {}: {e}", entry.label()));
                device.synchronize().map(|()| Arm::refused(entry.kind))
            });
            cell.arms.push(arm?);
        }
        cell.time(device)?;
        let first = record.rows.len();
        for (entry, arm) in group.entries.iter().zip(&cell.arms) {
            for &pass in &plan.passes {
                let row = runner::row(&record.meta.roof, group, rows, entry, pass, arm.part(pass), rows);
                record.rows.push(row);
            }
            noise.extend(arm.noise());
        }
        record.compare();
        progress.cell(&record.rows[first..]);
    }
    Ok(())
}

/// A layer, a dtype and a number of rows: the sets of a sweep, and the engines on them.
struct Cell<E: Number> {
    backward: bool,
    /// What the first set held before any engine ran.
    fresh: Set<E>,
    sets: Vec<Buffers<E>>,
    truths: Truths,
    arms: Vec<Arm<E>>,
}

/// One engine of a cell.
struct Arm<E: Number> {
    kind: Kind,
    forward: Timed,
    both: Timed,
    /// Forward timed a second time.
    again: Vec<f64>,
    /// Absent when the engine is wrong: it is not timed.
    sweep: Option<Sweep>,
    scratch_bytes: usize,
    /// What the graphs' launches use.
    _engine: Option<Engine<E>>,
}

/// One pass of an engine.
#[derive(Default)]
struct Timed {
    verdict: Verdict,
    samples: Vec<f64>,
}

/// An engine's calls over some sets.
struct Sweep {
    sets: usize,
    forward: CudaGraph,
    /// A graph of its own, for X and T have left the caches when a trainer comes to it.
    backward: Option<CudaGraph>,
}

impl<E: Number> Cell<E> {
    fn new(device: &Device, plan: &Plan, group: &Group, rows: usize) -> Result<Self> {
        let (d_out, d_in) = (group.layer.d_out, group.layer.d_in);
        let count = cold_sets(ROTATED, MOST_SETS, (rows, d_out, d_in), size_of::<E>());
        let mut lens = BTreeMap::new();
        for entry in &group.entries {
            for (buffer, len) in Program::new(entry.kind, &entry.problem, rows)?.lens {
                let most = lens.entry(buffer).or_insert(0);
                *most = len.max(*most);
            }
        }
        let set = |seed| Set::<E>::random(rows, d_out, d_in, group.t_len(rows), seed);
        let sets = (1..=count as u64).map(|seed| Buffers::of_set(device, &set(seed), &lens));
        Ok(Self {
            backward: plan.passes.contains(&Pass::Both),
            fresh: set(1),
            sets: sets.collect::<Result<_>>()?,
            truths: Truths::new(),
            arms: Vec::new(),
        })
    }

    /// Chooses an engine's products, checks it on a set of its own and captures its sweeps.
    fn prepare(
        &mut self,
        device: &mut Device,
        entry: &Entry,
        theta: Option<&Theta>,
        weight: Option<&Arc<Array2<E>>>,
    ) -> Result<Arm<E>> {
        let (backward, rows) = (self.backward, self.fresh.rows());
        let mut engine = Engine::new(device, entry, theta, weight, rows)?;
        engine.tune(device, &self.sets[0])?;
        let weight = weight.map(|w| w.as_ref());
        let answer = cell::answer(&mut self.truths, &entry.problem, theta, weight, &self.fresh);
        let (grad, merged) = (vec![0.0; entry.problem.params()], engine.merged(device)?);
        let mut on_host = OnHost { device, engine: &mut engine, set: None, grad, merged };
        let (forward, both) =
            check::check(&mut on_host, &entry.problem, theta, &self.fresh, answer, backward)?;
        let right = forward.ok && both.ok;
        let sweep = right.then(|| -> Result<Sweep> {
            self.replays(device, &mut engine, entry.kind)?;
            // A weight, or a whole ΔW, is the engine's own: a second set would find it in the caches.
            let whole = entry.kind.is_dense() || entry.kind == Kind::MergePerStep;
            let sets = &self.sets[..if whole { 1 } else { self.sets.len() }];
            let forward = device.capture(|| sets.iter().try_for_each(|set| engine.forward(device, set)))?;
            let back = || device.capture(|| sets.iter().try_for_each(|set| engine.backward(device, set)));
            Ok(Sweep { sets: sets.len(), forward, backward: backward.then(back).transpose()? })
        });
        let timed = |verdict| Timed { verdict, samples: Vec::new() };
        Ok(Arm {
            kind: entry.kind,
            forward: timed(forward),
            both: timed(both),
            again: Vec::new(),
            sweep: sweep.transpose()?,
            scratch_bytes: engine.scratch_bytes(),
            _engine: Some(engine),
        })
    }

    /// That graphs leave what the calls leave: of our kernels the same bits, of a library's products
    /// the same numbers.
    fn replays(&self, device: &Device, engine: &mut Engine<E>, kind: Kind) -> Result<()> {
        let mut run = |captured: bool| -> Result<Vec<f32>> {
            engine.clear(device)?;
            let set = Buffers::of_set(device, &self.fresh, engine.lens())?;
            let graphs = if captured {
                let forward = device.capture(|| engine.forward(device, &set))?;
                let back = || device.capture(|| engine.backward(device, &set));
                vec![Some(forward), self.backward.then(back).transpose()?]
            } else {
                engine.forward(device, &set)?;
                if self.backward {
                    engine.backward(device, &set)?;
                }
                Vec::new()
            };
            graphs.iter().flatten().try_for_each(|graph| graph.launch().map_err(failed("a graph")))?;
            // Each download waits for the stream, so the graphs outlive their launches.
            let outputs = [Buffer::Y, Buffer::Dx].into_iter().filter_map(|b| set.get(b).ok());
            let outputs = outputs.map(|memory| memory.download(device)).collect::<Result<Vec<_>>>()?;
            Ok([outputs.concat(), engine.grad(device)?].concat())
        };
        let (calls, graphs) = (run(false)?, run(true)?);
        let same = match kind {
            Kind::KronFused | Kind::LoraFused => {
                calls.iter().map(|v| v.to_bits()).eq(graphs.iter().map(|v| v.to_bits()))
            }
            _ => stats::relative(&graphs, &calls) < 1e-2,
        };
        let wrong = || Error::Device("a replay of its graphs leaves other numbers than its calls".into());
        if same { Ok(()) } else { Err(wrong()) }
    }

    /// Interleaved rounds, a different engine first in each.
    fn time(&mut self, device: &mut Device) -> Result<()> {
        let count = self.arms.len();
        for i in (0..ROUNDS).flat_map(|round| (0..count).map(move |i| (i + round) % count)) {
            let arm = &mut self.arms[i];
            let Some(sweep) = &arm.sweep else { continue };
            let forward = device.sample(&sweep.forward)? / sweep.sets as f64;
            arm.forward.samples.push(forward);
            if let Some(graph) = &sweep.backward {
                arm.both.samples.push(forward + device.sample(graph)? / sweep.sets as f64);
            }
            if arm.kind == Kind::Linear {
                arm.again.push(device.sample(&sweep.forward)? / sweep.sets as f64);
            }
        }
        Ok(())
    }
}

impl<E: Number> Arm<E> {
    /// An engine that the device or cuBLASLt does not run.
    fn refused(kind: Kind) -> Self {
        let wrong =
            || Timed { verdict: Verdict { rel_error: f64::NAN, ..Verdict::default() }, ..Timed::default() };
        Self {
            kind,
            forward: wrong(),
            both: wrong(),
            again: Vec::new(),
            sweep: None,
            scratch_bytes: 0,
            _engine: None,
        }
    }

    fn part(&self, pass: Pass) -> Part<'_> {
        let timed = match pass {
            Pass::Forward => &self.forward,
            Pass::Both => &self.both,
        };
        Part { samples: &timed.samples, verdict: timed.verdict, extra_bytes: self.scratch_bytes }
    }

    /// How far apart two timings of the same work lie.
    fn noise(&self) -> Option<f64> {
        let ratio = stats::median(&self.forward.samples) / stats::median(&self.again);
        Some((ratio - 1.0).abs()).filter(|noise| noise.is_finite())
    }
}

/// A device's engine as the check sees it: sets come from the host and go back.
struct OnHost<'a, E: Number> {
    device: &'a Device,
    engine: &'a mut Engine<E>,
    /// Kept from forward to backward.
    set: Option<Buffers<E>>,
    grad: Vec<f32>,
    /// The weight that merging changes, as it is now.
    merged: Option<Array2<E>>,
}

impl<E: Number> OnHost<'_, E> {
    /// One of a set's buffers, back into the host's set.
    fn fetch(&self, set: &Buffers<E>, buffer: Buffer, to: &mut [E]) -> Result<()> {
        if let Memory::Own(data) = set.get(buffer)? {
            to.copy_from_slice(&self.device.download(data)?);
        }
        Ok(())
    }
}

impl<E: Number> crate::engines::Engine<E> for OnHost<'_, E> {
    fn scratch_bytes(&self, _: bool) -> usize {
        self.engine.scratch_bytes()
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        let on_device = Buffers::of_set(self.device, set, self.engine.lens())?;
        self.engine.forward(self.device, &on_device)?;
        self.fetch(&on_device, Buffer::Y, set.y.flat_mut())?;
        self.merged = self.engine.merged(self.device)?;
        self.set = Some(on_device);
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        let Some(on_device) = self.set.take() else {
            return self.forward(set).and_then(|()| self.backward(set));
        };
        self.engine.clear(self.device)?;
        self.engine.backward(self.device, &on_device)?;
        self.fetch(&on_device, Buffer::Dx, set.dx.flat_mut())?;
        self.grad = self.engine.grad(self.device)?;
        Ok(())
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }

    fn weight(&self) -> Option<&Array2<E>> {
        self.merged.as_ref()
    }
}
