//! The extension `kron_lora._kron`: kron-core's calls on the memory of torch's CPU tensors, and the programs.
//!
//! The package's own Python code is the only caller; it checks the tensors and passes their addresses.

mod call;
#[cfg(any(feature = "cuda", feature = "emulate"))]
mod device;
#[cfg(feature = "programs")]
mod programs;
mod team;

use pyo3::prelude::*;

#[pymodule]
mod _kron {
    #[cfg(feature = "emulate")]
    #[pymodule_export]
    const EMULATES: bool = true;
    #[pymodule_export]
    use crate::call::{backward, forward};
    #[cfg(any(feature = "cuda", feature = "emulate"))]
    #[pymodule_export]
    use crate::device::{device_backward, device_forward, device_workspace_len};
    #[cfg(feature = "programs")]
    #[pymodule_export]
    use crate::programs::{kron, kron_train};
    #[pymodule_export]
    use crate::team::use_openmp;
}
