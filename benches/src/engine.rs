//! The interface of an engine, and what one is built from.

use std::sync::Arc;

use kron_core::{Cpu, Element, Result};
use ndarray::Array2;

use crate::data::Set;

/// One way to compute one layer's forward and backward on a [`Set`].
pub trait Engine<E: Element> {
    /// Returns the bytes of T and of buffers kept between calls, without θ and its gradient:
    /// for both passes with `backward`, else for forward alone.
    fn scratch_bytes(&self, backward: bool) -> usize;

    /// Adds the adapter's output to Y (the base layer overwrites it) and writes T.
    ///
    /// # Errors
    /// Fails if kron-core or the device refuses the call.
    fn forward(&mut self, set: &mut Set<E>) -> Result<()>;

    /// Adds to dX and to the gradient.
    ///
    /// # Errors
    /// Fails if kron-core or the device refuses the call.
    fn backward(&mut self, set: &mut Set<E>) -> Result<()>;

    /// Returns the gradient so far, \[dA | dB | dC\]; empty for the base layer.
    fn grad(&mut self) -> &mut [f32] {
        &mut []
    }

    /// Returns the weight that merging changes.
    fn weight(&self) -> Option<&Array2<E>> {
        None
    }
}

/// Everything that an engine is built from, apart from its problem and θ.
#[derive(Clone, Debug)]
pub struct EngineConfig<E> {
    /// Number of tokens.
    pub rows: usize,
    /// Threads of rayon's current pool.
    pub threads: usize,
    /// kron-core's CPU backend.
    pub cpu: Cpu,
    /// W, d_out × d_in; `linear` and `merge-per-step` need it.
    pub weight: Option<Arc<Array2<E>>>,
}
