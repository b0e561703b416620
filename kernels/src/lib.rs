//! The CUDA backend of kron-lora: ΔW = s·A ⊗ (B·C) on a frozen linear layer.
//!
//! ```text
//! forward    T = X·Cᵀ      U = A·T      Y (+)= s·U·Bᵀ
//! backward   dU = s·dY·B   dB += s·Σ dYᵀ·U   dT = Aᵀ·dU   dA += Σ dU·Tᵀ   dC += Σ dTᵀ·X   dX (+)= dT·C
//! ```
//!
//! [`Cuda`] implements kron-core's [`Backend`](kron_core::Backend) for device memory.
//! A call goes one way: [`Problem`] → [`LaunchPlan`] → parameters → launch → `cuda/kernels/`.
//! The crate depends on no framework, and its calls allocate no device memory.
//!
//! Without features the crate only plans. The feature `cuda` launches on a GPU; `emulate`
//! runs the same kernels on the host, for tests.
#![deny(unsafe_code)]

mod arch;
mod backend;
mod check;
#[allow(unsafe_code)]
mod device;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod driver;
#[cfg(feature = "emulate")]
#[allow(unsafe_code)]
mod emulated;
mod group;
#[allow(unsafe_code)]
mod launch;
#[allow(unsafe_code)]
mod launcher;
mod names;
mod pool;
#[rustfmt::skip]
#[allow(unsafe_code)]
pub mod params;
pub mod plan;
mod problem;
mod profile;
mod segments;
pub mod tiles;

pub use arch::{ARCHS, Arch};
pub use backend::Cuda;
pub use device::{DeviceSlice, DeviceSliceMut, KeyHandle, Rows, RowsMut, StreamHandle};
#[cfg(feature = "cuda")]
pub use driver::{DeviceVec, Gpu};
#[cfg(feature = "emulate")]
pub use emulated::{Async, Emulated, Schedule, Site};
pub use group::{BackwardGroup, DeviceGroup, DeviceTerm, ForwardGroup};
pub use launcher::Launcher;
pub use names::{Name, kernels};
pub use plan::{GroupPlan, LaunchPlan, Step, group_workspace_len, segments_workspace_len, workspace_len};
pub use pool::DevicePool;
pub use problem::Problem;
pub use segments::{BackwardSegments, ForwardSegments};
