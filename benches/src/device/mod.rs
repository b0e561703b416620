//! `--device cuda:N`: the same layers on a GPU.
//!
//! An engine is a list of steps (`program.rs`): products (`product.rs`) and
//! calls of kron-core on buffers (`buffer.rs`). One executor (`engines.rs`, `lt.rs`)
//! runs them on the device; the tests interpret them on the CPU.
//!
//! Each pass of an engine over some sets is captured in a graph, so that no launch
//! by the host is timed (`platform.rs`). Over few rows a graph has many calls, and the
//! time of one without them is taken off (`sweep.rs`, `timed.rs`). Before each sample the
//! caches are flushed by reading (`flush.rs`), and events on the stream take the time (`gpu.rs`).

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(any(feature = "cuda", test))]
mod buffer;
#[cfg(feature = "cuda")]
mod engines;
#[cfg(feature = "cuda")]
mod flush;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod lt;
#[cfg(feature = "cuda")]
mod platform;
#[cfg(any(feature = "cuda", test))]
mod product;
#[cfg(any(feature = "cuda", test))]
mod program;
#[cfg(feature = "cuda")]
mod roof;
#[cfg(feature = "cuda")]
mod single;
#[cfg(any(feature = "cuda", test))]
mod sweep;
#[cfg(feature = "cuda")]
mod timed;

#[cfg(not(feature = "cuda"))]
pub use absent::{check, run};
#[cfg(feature = "cuda")]
pub use platform::{Bench, check, run};
#[cfg(feature = "cuda")]
pub use single::Single;

#[cfg(test)]
mod tests;
