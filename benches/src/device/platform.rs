//! The device as a platform.

use std::collections::BTreeMap;
use std::rc::Rc;

use cudarc::driver::CudaGraph;
use kron_core::{Dtype, Error, Result};
use kron_kernels::Gpu;
use ndarray::Array2;

use super::buffer::Buffer;
use super::engines::Engine;
use super::gpu::{Buffers, Device, DeviceBuffer, Number, failed};
use super::lt::CublasLt;
use super::program::Program;
use super::roof;
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
/// Samples of every engine.
const ROUNDS: usize = 15;

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
    let bench = Bench::open(ordinal);
    bench.and_then(|mut bench| runner::run(&mut bench, schedule, progress)).map_err(|e| e.to_string())
}

/// A device with its libraries.
pub struct Bench {
    ordinal: usize,
    pub(super) device: Device,
    pub(super) library: Rc<CublasLt>,
}

impl Bench {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// Fails without a driver, such a device, or cuBLASLt.
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        Ok(Self { ordinal, library: Rc::new(CublasLt::new(&device.stream)?), device })
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
        roof::measure(&mut self.device, &self.library, dtypes)
    }

    fn recover(&mut self) -> Result<()> {
        self.device.synchronize()
    }
}

/// An engine with its calls over the sets of a sweep.
pub struct Prepared<E: Number> {
    engine: Engine<E>,
    /// `None` until the engine is warmed up.
    sweep: Option<Sweep>,
}

/// An engine's graphs over some sets.
struct Sweep {
    sets: usize,
    forward: CudaGraph,
    /// A graph of its own, because X and T have left the caches when a trainer runs backward.
    backward: Option<CudaGraph>,
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
        Ok(Prepared { engine, sweep: None })
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
        let Prepared { engine: calls, sweep } = engine;
        check_replay(device, calls, task)?;
        // A weight, or a whole ΔW, is the engine's own: a second set would find it in the caches.
        let whole = kind.is_dense() || kind.needs_weight();
        let some = &sets[..if whole { 1 } else { sets.len() }];
        let forward = device.capture(|| some.iter().try_for_each(|set| calls.forward(device, set)))?;
        let back = || device.capture(|| some.iter().try_for_each(|set| calls.backward(device, set)));
        let backward = task.backward.then(back).transpose()?;
        *sweep = Some(Sweep { sets: some.len(), forward, backward });
        let sets_swept = some.len();
        Ok(self.sample(sets, engine, sets_swept, task.backward)?.1)
    }

    fn pace(&self, sets: &Self::Cell, _: Kind, _: f64, _: TimeLeft) -> Pace {
        Pace { rounds: ROUNDS, sweep: sets.len() }
    }

    /// Runs the captured sweep, whatever `sweep` is.
    fn sample(
        &mut self,
        _: &mut Self::Cell,
        engine: &mut Prepared<E>,
        _sweep: usize,
        _: bool,
    ) -> Result<(f64, f64)> {
        let Some(sweep) = &engine.sweep else {
            return Err(Error::Device("an engine is sampled before its warm-up".into()));
        };
        let forward = self.device.sample(&sweep.forward)? / sweep.sets as f64;
        let backward = sweep.backward.as_ref().map(|graph| self.device.sample(graph)).transpose()?;
        Ok((forward, forward + backward.unwrap_or(0.0) / sweep.sets as f64))
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
