//! `--device cuda:N`: the same layers on a GPU.
//!
//! What an engine computes is a list of steps (`program.rs`): products
//! (`product.rs`), and calls of kron-core. One executor (`engines.rs`, `lt.rs`)
//! runs them on the device; the tests interpret them without one.
//!
//! Each pass of an engine over some sets is captured in a graph, so that no launch
//! of the host is timed; before each sample the caches are flushed, and events
//! on the stream take the time.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod engines;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod lt;
#[cfg(any(feature = "cuda", test))]
mod product;
#[cfg(any(feature = "cuda", test))]
mod program;
#[cfg(feature = "cuda")]
mod roof;
#[cfg(feature = "cuda")]
mod run;
#[cfg(feature = "cuda")]
mod single;

#[cfg(not(feature = "cuda"))]
pub use absent::{check, run};
#[cfg(feature = "cuda")]
pub use run::{check, run};
#[cfg(feature = "cuda")]
pub use single::{Bench, Single};

#[cfg(test)]
mod tests;
