//! [`TimedGraph`]: the calls of a sweep in a graph, and their time.

use cudarc::driver::CudaGraph;
use kron_core::Result;

use super::gpu::Device;
use super::sweep::Sweep;

/// A graph with the graph whose time is taken off.
pub struct TimedGraph {
    graph: CudaGraph,
    /// The same without the calls: empty, or the flushes between them.
    rest: Option<CudaGraph>,
    calls: usize,
}

impl TimedGraph {
    /// Captures a sweep; `queue` queues the call of a number.
    ///
    /// # Errors
    /// Fails if a call does, or the device.
    pub fn new(device: &Device, sweep: Sweep, queue: impl Fn(usize) -> Result<()>) -> Result<Self> {
        let flush = || if sweep.flushed { device.flush() } else { Ok(()) };
        let capture = |with_calls: bool| {
            device.capture(|| {
                (0..sweep.calls).try_for_each(|call| {
                    flush()?;
                    if with_calls { queue(call) } else { Ok(()) }
                })
            })
        };
        let rest = sweep.net.then(|| capture(false)).transpose()?;
        Ok(Self { graph: capture(true)?, rest, calls: sweep.calls })
    }

    /// Returns the seconds of a call, with cold caches before the graph.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn sample(&self, device: &mut Device) -> Result<f64> {
        let mut seconds = device.sample(&self.graph)?;
        if let Some(rest) = &self.rest {
            // A difference within the clock's noise is not a negative time.
            seconds = (seconds - device.sample(rest)?).max(1e-9);
        }
        Ok(seconds / self.calls as f64)
    }
}
