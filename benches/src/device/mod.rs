//! `--device cuda:N`: the same layers on a GPU.
//!
//! An engine's sweep over some sets is captured in a graph, so that no launch
//! of the host is timed; before each sample the caches are flushed, and events
//! on the stream take the time.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod engines;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod run;

#[cfg(not(feature = "cuda"))]
pub use absent::{check, run};
#[cfg(feature = "cuda")]
pub use run::{check, run};

use crate::engines::Kind;

/// The engines that run on a device.
pub const KINDS: [Kind; 5] =
    [Kind::Linear, Kind::LoraGemm, Kind::LoraFused, Kind::KronDense, Kind::KronFused];
