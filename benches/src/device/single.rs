//! One engine on one set, as criterion times it.

use std::time::Duration;

use cudarc::driver::CudaGraph;
use kron_core::{KronOp, Result, Theta};
use ndarray::Array2;

use super::engines::Engine;
use super::gpu::{Buffers, Device, Number};
use crate::data::{Set, uniform};
use crate::engines::Kind;
use crate::plan::Entry;
use crate::problem::{Pass, Problem};
use crate::runner::{THETA_SEED, WEIGHT_SEED};

/// A device for [`Single`].
pub struct Bench(Device);

impl Bench {
    /// Device `ordinal`.
    ///
    /// # Errors
    /// No driver, no such device, or no cuBLASLt.
    pub fn open(ordinal: usize) -> Result<Self> {
        Device::open(ordinal).map(Self)
    }
}

/// An engine and the graphs of its two passes.
pub struct Single<E> {
    forward: CudaGraph,
    both: CudaGraph,
    /// What the graphs' launches use.
    _engine: Engine<E>,
    _set: Buffers<E>,
}

impl<E: Number> Single<E> {
    /// The engine on random numbers; of an adapter, `op`, or of its layer.
    ///
    /// # Errors
    /// What the device or cuBLASLt refuses.
    pub fn new(bench: &mut Bench, kind: Kind, op: &KronOp, rows: usize) -> Result<Self> {
        let device = &mut bench.0;
        let (d_out, d_in) = (op.shape.d_out(), op.shape.d_in());
        let problem = match kind {
            Kind::Linear => Problem::Linear { d_out, d_in },
            Kind::MergePerStep => Problem::Merge(*op),
            _ => Problem::Adapter(*op),
        };
        let theta = problem.shape().map(|s| Theta::random(s, THETA_SEED));
        let weight: Array2<E> = uniform(d_out, d_in, (3.0 / d_in as f32).sqrt(), WEIGHT_SEED);
        let entry = Entry { kind, problem };
        let mut engine = Engine::new(device, &entry, theta.as_ref(), Some(&weight.into()), rows)?;
        let set = Set::<E>::random(rows, d_out, d_in, op.t_len(rows), 3);
        let set = Buffers::of_set(device, &set, engine.lens())?;
        engine.tune(device, &set)?;
        let forward = device.capture(|| engine.forward(device, &set))?;
        let both = device.capture(|| {
            engine.forward(device, &set)?;
            engine.backward(device, &set)
        })?;
        Ok(Self { forward, both, _engine: engine, _set: set })
    }

    /// The time of `times` runs of a pass, each with cold caches.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn time(&self, bench: &mut Bench, pass: Pass, times: u64) -> Result<Duration> {
        let graph = match pass {
            Pass::Forward => &self.forward,
            Pass::Both => &self.both,
        };
        let seconds = (0..times).map(|_| bench.0.sample(graph)).sum::<Result<f64>>()?;
        Ok(Duration::from_secs_f64(seconds))
    }
}
