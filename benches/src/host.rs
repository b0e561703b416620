//! The CPU as a platform: engines run in this process, on rayon's current pool.

use kron_core::{Cpu, Dtype, Element, LayerDims, Result};

use crate::autotune::{DENSE_TRIAL_ROWS, TRIAL_ROWS};
use crate::data::sets_for;
use crate::engine::{Engine, EngineConfig};
use crate::engines::{self, Choice, Kind};
use crate::machine;
use crate::platform::{Measure, Pace, Platform, Task, TimeLeft};
use crate::record::{GemmChoice, Record, Roof};
use crate::roof;
use crate::runner::{self, Progress};
use crate::schedule::{Entry, Group, Schedule};
use crate::timing::{Ring, SLOW, rounds};

/// Bytes of the last cache where the system does not tell.
const DEFAULT_CACHE: usize = 32 << 20;

/// Rows on which a slow engine is checked.
const SLOW_ROWS: usize = 64;

/// Measures everything in the schedule on a pool of its threads.
///
/// # Errors
/// Fails if the system does not grant the threads, or if the runner does.
pub fn run(schedule: &Schedule, progress: &mut (dyn Progress + Send)) -> std::result::Result<Record, String> {
    let threads = schedule.threads;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| format!("threads = {threads}: {e}"))?;
    let cache = machine::last_cache().unwrap_or(DEFAULT_CACHE);
    let mut host = Host { cpu: Cpu::new(), threads, cache, choices: Vec::new() };
    pool.install(|| runner::run(&mut host, schedule, progress)).map_err(|e| e.to_string())
}

/// The CPU.
struct Host {
    cpu: Cpu,
    threads: usize,
    /// Bytes of the last cache.
    cache: usize,
    /// The choices that autotuning has made, one for each layer and number of rows.
    choices: Vec<(GemmChoice, Choice)>,
}

impl Platform for Host {
    fn describe(&self) -> Result<String> {
        Ok(self.cpu.isa().to_string())
    }

    fn rotated_bytes(&self) -> usize {
        2 * self.cache
    }

    fn roof(&mut self, dtypes: &[Dtype]) -> Result<Roof> {
        roof::measure(self.cpu.isa(), dtypes, self.cache, self.threads)
    }

    fn choices(&self) -> Vec<GemmChoice> {
        self.choices.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl<E: Element> Measure<E> for Host {
    type Cell = Ring<E>;
    type Engine = Box<dyn Engine<E>>;

    fn cell(&mut self, group: &Group, rows: usize) -> Result<Ring<E>> {
        let count = sets_for(self.rotated_bytes(), rows, group.layer.dims(), size_of::<E>());
        Ok(Ring::new((1..=count as u64).map(|seed| group.set(rows, seed)).collect()))
    }

    fn check_limit(&self, entry: &Entry, rows: usize, roof: &Roof) -> Option<usize> {
        // Both passes take at least two products with a base layer, three with a materialised ΔW.
        let LayerDims { d_out, d_in } = entry.problem.layer();
        let products = if entry.problem.op().is_some() { 3.0 } else { 2.0 };
        let flops = products * 2.0 * rows as f64 * d_out as f64 * d_in as f64;
        let slow = entry.kind.is_dense() && flops / roof.flops(E::DTYPE.name()) > SLOW;
        slow.then_some(SLOW_ROWS)
    }

    fn prepare(&mut self, _: &mut Ring<E>, task: &Task<E>, rows: usize) -> Result<Self::Engine> {
        let (kind, problem) = (task.entry.kind, &task.entry.problem);
        let weight = task.weight.cloned();
        let config = EngineConfig { rows, threads: self.threads, cpu: self.cpu, weight };
        let choice = self.choice(task, &config)?;
        Ok(engines::build(kind, choice, problem, task.theta, &config))
    }

    fn check<R>(
        &mut self,
        engine: &mut Self::Engine,
        check: impl FnOnce(&mut dyn Engine<E>) -> Result<R>,
    ) -> Result<R> {
        check(engine.as_mut())
    }

    fn extra_bytes(&self, engine: &Self::Engine, backward: bool, peak_bytes: usize) -> usize {
        engine.scratch_bytes(backward) + peak_bytes
    }

    fn warm_up(&mut self, ring: &mut Ring<E>, engine: &mut Self::Engine, task: &Task<E>) -> Result<f64> {
        Ok(ring.sample(engine.as_mut(), 1, task.backward)?.1)
    }

    fn pace(&self, ring: &Ring<E>, kind: Kind, seconds: f64, left: TimeLeft) -> Pace {
        if kind.is_dense() && seconds > SLOW && seconds > left.run {
            return Pace::default();
        }
        let sweep = ring.sweep(seconds, left.share);
        Pace { rounds: rounds(kind, sweep as f64 * seconds, left.share), sweep }
    }

    fn sample(
        &mut self,
        ring: &mut Ring<E>,
        engine: &mut Self::Engine,
        sweep: usize,
        backward: bool,
    ) -> Result<(f64, f64)> {
        ring.sample(engine.as_mut(), sweep, backward)
    }
}

impl Host {
    /// Returns the products of an engine, autotuned once per layer and number of rows.
    fn choice<E: Element>(&mut self, task: &Task<E>, config: &EngineConfig<E>) -> Result<Choice> {
        let Entry { kind, problem } = task.entry;
        let max_rows = if kind.is_dense() { DENSE_TRIAL_ROWS } else { TRIAL_ROWS };
        let rows = max_rows.min(config.rows);
        let LayerDims { d_out, d_in } = problem.layer();
        let mut name = GemmChoice {
            engine: *kind,
            d_out,
            d_in,
            dtype: E::DTYPE.to_string(),
            rank: task.entry.factors().rank,
            rows,
            forward: String::new(),
            backward: String::new(),
        };
        let made = |name: &GemmChoice| self.choices.iter().find(|c| c.0.same_case(name)).map(|c| c.1);
        // A materialised ΔW, or a whole layer, meets the same products as the layer's own weight.
        let of_linear = GemmChoice { engine: Kind::Linear, rank: 0, ..name.clone() };
        let repeats = matches!(kind, Kind::KronDense | Kind::KronFirst);
        let known = made(&name).or_else(|| repeats.then(|| made(&of_linear)).flatten());
        if let Some(choice) = known {
            return Ok(choice);
        }
        let choice = engines::choose(*kind, problem, task.theta, config, &mut task.fresh.head(rows))?;
        if let Some([forward, backward]) = choice.names() {
            (name.forward, name.backward) = (forward, backward);
            self.choices.push((name, choice));
        }
        Ok(choice)
    }
}
