//! One engine on one set, for Criterion.

use std::time::Duration;

use kron_core::{KronOp, Result};

use super::engines::Engine;
use super::gpu::{Buffers, Number};
use super::platform::Bench;
use super::sweep::Sweep;
use super::timed::TimedGraph;
use crate::data::{self, Set};
use crate::engines::Kind;
use crate::problem::TimedPasses;
use crate::schedule::Entry;

/// An engine and the graphs of its two passes.
pub struct Single<E> {
    forward: TimedGraph,
    both: TimedGraph,
    // The graphs' launches use these.
    _engine: Engine<E>,
    _set: Buffers<E>,
}

impl<E: Number> Single<E> {
    /// Builds the engine of the adapter `op`, or of its layer, on random data.
    ///
    /// # Errors
    /// Fails if the device or cuBLASLt does.
    pub fn new(bench: &mut Bench, kind: Kind, op: &KronOp, rows: usize) -> Result<Self> {
        let Bench { device, library, .. } = bench;
        let entry = Entry { kind, problem: kind.problem(*op, *op) };
        let weight = data::weight::<E>(entry.problem.layer()).into();
        let mut engine = Engine::new(device, library, &entry, entry.theta().as_ref(), Some(&weight), rows)?;
        let set = Set::<E>::random(rows, entry.problem.layer(), op.t_len(rows), 3);
        let set = Buffers::of_set(device, &set, engine.lens())?;
        engine.tune(device, &set)?;
        // One set: over few rows every call finds cold caches.
        let sweep = Sweep::new(rows, 1, true);
        let forward = TimedGraph::new(device, sweep, |_| engine.forward(device, &set))?;
        let both = TimedGraph::new(device, sweep, |_| {
            engine.forward(device, &set)?;
            engine.backward(device, &set)
        })?;
        Ok(Self { forward, both, _engine: engine, _set: set })
    }

    /// Returns the time of `times` runs of a pass, each with cold caches.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn time(&self, bench: &mut Bench, pass: TimedPasses, times: u64) -> Result<Duration> {
        let graph = match pass {
            TimedPasses::Forward => &self.forward,
            TimedPasses::Both => &self.both,
        };
        let seconds = (0..times).map(|_| graph.sample(&mut bench.device)).sum::<Result<f64>>()?;
        Ok(Duration::from_secs_f64(seconds))
    }
}
