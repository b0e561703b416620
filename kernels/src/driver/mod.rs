//! The kernels on a GPU, through the CUDA driver.

mod gpu;
mod kernels;
mod library;
mod memory;
mod thread;

pub use gpu::Gpu;
pub use memory::DeviceVec;
