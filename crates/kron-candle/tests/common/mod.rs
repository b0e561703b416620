//! Devices of the tests.

use candle_core::Device;

/// Lists the CPU and, with the feature `cuda`, the first GPU; without one the reason is printed to stderr.
pub fn devices() -> Vec<Device> {
    let gpu = cfg!(feature = "cuda").then(|| Device::new_cuda(0));
    let gpu = gpu.and_then(|gpu| gpu.inspect_err(|e| eprintln!("skipped: {e}")).ok());
    [Device::Cpu].into_iter().chain(gpu).collect()
}
