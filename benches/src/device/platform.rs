//! The device as a platform.

use std::collections::BTreeMap;
use std::rc::Rc;

use kron_core::{Dtype, Error, Result};
use kron_kernels::Gpu;
use ndarray::Array2;

use super::buffer::Buffer;
use super::engines::Engine;
use super::flush;
use super::gpu::{Buffers, Device, DeviceBuffer, Extent, Number, SMOKE, WHOLE, failed};
use super::lt::CublasLt;
use super::program::Program;
use super::roof;
use super::sweep::Sweep;
use super::timed::TimedGraph;
use crate::data::{Set, cold_sets};
use crate::engine;
use crate::engines::Kind;
use crate::platform::{Measure, Pace, Platform, Task, TimeLeft};
use crate::record::{Record, Roof};
use crate::runner::{self, Progress};
use crate::schedule::{Group, Schedule};
use crate::stats;

/// Bytes of X and Y together in a sweep of more than one set: more than any cache holds.
const ROTATED: usize = 256 << 20;
/// Most sets of a sweep; where more would be needed, a sample is one set.
const MAX_SETS: usize = 32;

/// Fails unless the machine has CUDA device `ordinal`.
///
/// # Errors
/// Fails without a driver, or without a device of that number.
pub fn check(ordinal: usize) -> Result<(), String> {
    match Gpu::count() {
        Ok(count) if ordinal < count => Ok(()),
        Ok(count) => Err(format!("device is cuda:{ordinal}, but this machine has {count} CUDA devices")),
        Err(e) => Err(format!("device is cuda:{ordinal}, but there is {e}")),
    }
}

/// Measures everything in the schedule on CUDA device `ordinal`.
///
/// # Errors
/// Fails if there is no such device, or if the runner does.
pub fn run(schedule: &Schedule, ordinal: usize, progress: &mut dyn Progress) -> Result<Record, String> {
    let bench = Bench::open(ordinal, schedule.smoke);
    bench.and_then(|mut bench| runner::run(&mut bench, schedule, progress)).map_err(|e| e.to_string())
}

/// A device with its libraries.
pub struct Bench {
    ordinal: usize,
    extent: Extent,
    pub(super) device: Device,
    pub(super) library: Rc<CublasLt>,
}

impl Bench {
    /// Opens device `ordinal`. With `smoke` the caches are not emptied and the roof is not the device's: all that
    /// counts then is that everything runs.
    ///
    /// # Errors
    /// Fails without a driver, such a device, or cuBLASLt.
    pub fn open(ordinal: usize, smoke: bool) -> Result<Self> {
        let extent = if smoke { SMOKE } else { WHOLE };
        let mut device = Device::open(ordinal)?;
        let library = Rc::new(CublasLt::new(&device.stream)?);
        device.flush_by(flush::by_reading(&device, &library, extent.flush)?);
        Ok(Self { ordinal, extent, library, device })
    }
}

impl Platform for Bench {
    fn describe(&self) -> Result<String> {
        Ok(format!("cuda:{}, {}", self.ordinal, self.device.name()?))
    }

    fn rotated_bytes(&self) -> usize {
        ROTATED
    }

    fn roof(&mut self, dtypes: &[Dtype]) -> Result<Roof> {
        roof::measure(&mut self.device, &self.library, dtypes, self.extent)
    }

    fn recover(&mut self) -> Result<()> {
        self.device.synchronize()
    }
}

/// An engine with its calls over the sets of a sweep.
pub struct Prepared<E: Number> {
    engine: Engine<E>,
    /// `None` until the engine is warmed up.
    passes: Option<Passes>,
}

/// An engine's graphs over some sets.
struct Passes {
    forward: TimedGraph,
    /// A graph of its own, because X and T have left the caches when a trainer runs backward.
    backward: Option<TimedGraph>,
}

impl<E: Number> Measure<E> for Bench {
    /// The sets of a sweep.
    type Cell = Vec<Buffers<E>>;
    type Engine = Prepared<E>;

    fn cell(&mut self, group: &Group, rows: usize) -> Result<Self::Cell> {
        let count = cold_sets(ROTATED, MAX_SETS, rows, group.layer.dims(), size_of::<E>());
        let mut lens = BTreeMap::new();
        for entry in &group.entries {
            for (buffer, len) in Program::new(entry.kind, &entry.problem, rows)?.lens {
                let longest = lens.entry(buffer).or_insert(0);
                *longest = len.max(*longest);
            }
        }
        (1..=count as u64).map(|seed| Buffers::of_set(&self.device, &group.set(rows, seed), &lens)).collect()
    }

    fn prepare(&mut self, sets: &mut Self::Cell, task: &Task<E>, rows: usize) -> Result<Prepared<E>> {
        let (device, library) = (&mut self.device, &self.library);
        let mut engine = Engine::new(device, library, task.entry, task.theta, task.weight, rows)?;
        engine.tune(device, &sets[0])?;
        Ok(Prepared { engine, passes: None })
    }

    fn check<R>(
        &mut self,
        Prepared { engine, .. }: &mut Prepared<E>,
        check: impl FnOnce(&mut dyn engine::Engine<E>) -> Result<R>,
    ) -> Result<R> {
        let device = &self.device;
        let (grad, merged) = (engine.grad(device)?, engine.merged(device)?);
        check(&mut OnHost { device, engine, set: None, grad, merged })
    }

    /// Ignores the host's memory, which only the check uses.
    fn extra_bytes(&self, engine: &Prepared<E>, _: bool, _: usize) -> usize {
        engine.engine.scratch_bytes()
    }

    /// Captures the engine's sweeps, after a comparison of graphs with calls.
    fn warm_up(&mut self, sets: &mut Self::Cell, engine: &mut Prepared<E>, task: &Task<E>) -> Result<f64> {
        let (device, kind) = (&self.device, task.entry.kind);
        let Prepared { engine: calls, passes } = engine;
        check_replay(device, calls, task)?;
        let whole = kind.is_dense() || kind.needs_weight();
        let sweep = Sweep::new(task.fresh.rows(), sets.len(), whole);
        let set = |call: usize| if whole { &sets[0] } else { &sets[call % sets.len()] };
        let forward = TimedGraph::new(device, sweep, |call| calls.forward(device, set(call)))?;
        let back = || TimedGraph::new(device, sweep, |call| calls.backward(device, set(call)));
        *passes = Some(Passes { forward, backward: task.backward.then(back).transpose()? });
        Ok(self.sample(sets, engine, sweep.calls, task.backward)?.1)
    }

    fn pace(&self, sets: &Self::Cell, _: Kind, _: f64, _: TimeLeft) -> Pace {
        Pace { rounds: self.extent.rounds, sweep: sets.len() }
    }

    /// Runs the captured sweep, whatever `sweep` is.
    fn sample(
        &mut self,
        _: &mut Self::Cell,
        engine: &mut Prepared<E>,
        _sweep: usize,
        _: bool,
    ) -> Result<(f64, f64)> {
        let Some(passes) = &engine.passes else {
            return Err(Error::Device("an engine is sampled before its warm-up".into()));
        };
        let forward = passes.forward.sample(&mut self.device)?;
        let backward = passes.backward.as_ref().map(|graph| graph.sample(&mut self.device)).transpose()?;
        Ok((forward, forward + backward.unwrap_or(0.0)))
    }
}

/// Fails unless graphs give the results of the calls: the same bits for our kernels, close values for a
/// library's products.
fn check_replay<E: Number>(device: &Device, engine: &mut Engine<E>, task: &Task<E>) -> Result<()> {
    let mut run = |captured: bool| -> Result<Vec<f32>> {
        engine.clear(device)?;
        let set = Buffers::of_set(device, task.fresh, engine.lens())?;
        let graphs = if captured {
            let forward = device.capture(|| engine.forward(device, &set))?;
            let back = || device.capture(|| engine.backward(device, &set));
            vec![Some(forward), task.backward.then(back).transpose()?]
        } else {
            engine.forward(device, &set)?;
            if task.backward {
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
    let same = match task.entry.kind {
        Kind::KronFused | Kind::LoraFused => {
            calls.iter().map(|v| v.to_bits()).eq(graphs.iter().map(|v| v.to_bits()))
        }
        _ => stats::relative(&graphs, &calls) < 1e-2,
    };
    let wrong = || Error::Device("a replay of its graphs gives other results than its calls".into());
    if same { Ok(()) } else { Err(wrong()) }
}

/// A device's engine for sets in host memory: they are uploaded and downloaded.
struct OnHost<'a, E: Number> {
    device: &'a Device,
    engine: &'a mut Engine<E>,
    /// Kept from forward to backward.
    set: Option<Buffers<E>>,
    grad: Vec<f32>,
    /// The current weight of an engine that merges.
    merged: Option<Array2<E>>,
}

impl<E: Number> OnHost<'_, E> {
    /// Downloads one of a set's buffers into the host's set.
    fn fetch(&self, set: &Buffers<E>, buffer: Buffer, to: &mut [E]) -> Result<()> {
        if let DeviceBuffer::Own(data) = set.get(buffer)? {
            to.copy_from_slice(&self.device.download(data)?);
        }
        Ok(())
    }
}

impl<E: Number> engine::Engine<E> for OnHost<'_, E> {
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
