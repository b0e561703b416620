//! The kernels on a GPU, through the CUDA driver.

mod gpu;
mod kernels;
mod memory;

pub use gpu::Gpu;
pub use memory::DeviceVec;
