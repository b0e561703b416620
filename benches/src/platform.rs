//! The interface between the runner and the place where engines run: the CPU or a CUDA device.

use std::sync::Arc;

use kron_core::{Dtype, Element, Result, Theta};
use ndarray::Array2;

use crate::data::Set;
use crate::engine::Engine;
use crate::engines::Kind;
use crate::record::{GemmChoice, Roof};
use crate::schedule::{Entry, Group};

/// A place where engines run.
pub trait Platform {
    /// Returns the instruction set or the device, for the record.
    ///
    /// # Errors
    /// Fails if the device does not answer.
    fn describe(&self) -> Result<String>;

    /// Returns the bytes of X and Y together that a cell rotates through.
    fn rotated_bytes(&self) -> usize;

    /// Measures the copy bandwidth, and the multiply-add rate of each dtype.
    ///
    /// # Errors
    /// Fails if the device or an instruction set does.
    fn roof(&mut self, dtypes: &[Dtype]) -> Result<Roof>;

    /// Returns the products that autotuning has chosen so far.
    fn choices(&self) -> Vec<GemmChoice> {
        Vec::new()
    }

    /// Waits for the work of an engine that failed.
    ///
    /// # Errors
    /// Fails if the platform cannot go on.
    fn recover(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One engine's task in a cell.
pub struct Task<'a, E: Element> {
    /// The engine and its problem.
    pub entry: &'a Entry,
    /// θ; `None` for the base layer.
    pub theta: Option<&'a Theta>,
    /// W, d_out × d_in, if any engine of the cell needs it.
    pub weight: Option<&'a Arc<Array2<E>>>,
    /// A set that no engine has touched.
    pub fresh: &'a Set<E>,
    /// True if backward is timed too.
    pub backward: bool,
}

/// The time that is left for one engine of a cell.
#[derive(Clone, Copy, Debug)]
pub struct TimeLeft {
    /// Seconds for all samples of the engine.
    pub share: f64,
    /// Seconds until slow engines are left untimed.
    pub run: f64,
}

/// The number and the size of an engine's samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Number of samples; 0 leaves the engine untimed.
    pub rounds: usize,
    /// Sets in a sample.
    pub sweep: usize,
}

/// A platform's engines on activations of type `E`: each is prepared, checked, warmed up and sampled.
pub trait Measure<E: Element>: Platform {
    /// The buffers that the engines of a cell share.
    type Cell;
    /// An engine of this platform.
    type Engine;

    /// Allocates the buffers of a cell.
    ///
    /// # Errors
    /// Fails without enough memory.
    fn cell(&mut self, group: &Group, rows: usize) -> Result<Self::Cell>;

    /// Returns the number of rows on which an engine is checked if it is too slow for a whole cell.
    fn check_limit(&self, _: &Entry, _rows: usize, _: &Roof) -> Option<usize> {
        None
    }

    /// Autotunes an engine and builds it for `rows` rows.
    ///
    /// # Errors
    /// Fails if the platform refuses the engine.
    fn prepare(&mut self, cell: &mut Self::Cell, task: &Task<E>, rows: usize) -> Result<Self::Engine>;

    /// Calls `check` with the engine, which then reads and writes sets in host memory.
    ///
    /// # Errors
    /// Fails if `check` or the platform does.
    fn check<R>(
        &mut self,
        engine: &mut Self::Engine,
        check: impl FnOnce(&mut dyn Engine<E>) -> Result<R>,
    ) -> Result<R>;

    /// Returns the engine's memory in bytes, without what the trainer has in any case; `peak_bytes` is the
    /// host memory that its check allocated.
    fn extra_bytes(&self, engine: &Self::Engine, backward: bool, peak_bytes: usize) -> usize;

    /// Warms up an engine that is right, and returns the seconds of both passes.
    ///
    /// # Errors
    /// Fails if the engine does.
    fn warm_up(&mut self, cell: &mut Self::Cell, engine: &mut Self::Engine, task: &Task<E>) -> Result<f64>;

    /// Returns how often an engine that takes `seconds` for both passes is sampled.
    fn pace(&self, cell: &Self::Cell, kind: Kind, seconds: f64, left: TimeLeft) -> Pace;

    /// Takes a sample: the seconds per set of forward, and of forward and backward together.
    ///
    /// # Errors
    /// Fails if the engine does.
    fn sample(
        &mut self,
        cell: &mut Self::Cell,
        engine: &mut Self::Engine,
        sweep: usize,
        backward: bool,
    ) -> Result<(f64, f64)>;
}
