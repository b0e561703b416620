//! Where the tests compute.

use candle_core::Device;

/// The CPU and, with the feature `cuda`, the first GPU, or a line on standard error that says why not.
pub fn devices() -> Vec<Device> {
    let gpu = cfg!(feature = "cuda").then(|| Device::new_cuda(0));
    let gpu = gpu.and_then(|gpu| gpu.inspect_err(|e| eprintln!("skipped: {e}")).ok());
    [Device::Cpu].into_iter().chain(gpu).collect()
}
