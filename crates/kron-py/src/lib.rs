//! The extension `kron_lora._kron`: kron-capi's calls on the memory of torch's tensors, and the programs.
//!
//! The package's own Python code is the only caller; it checks the tensors and passes their addresses.

mod call;
#[cfg(feature = "programs")]
mod programs;
mod team;

use pyo3::prelude::*;

#[pymodule]
mod _kron {
    /// True where CUDA tensors are taken.
    #[pymodule_export]
    const CUDA: bool = cfg!(feature = "cuda");
    /// True where all calls run on the emulated device.
    #[pymodule_export]
    const EMULATES: bool = cfg!(all(feature = "emulate", debug_assertions));

    #[pymodule_export]
    use crate::call::{backward, forward, workspace_lens};
    #[cfg(feature = "programs")]
    #[pymodule_export]
    use crate::programs::{kron, kron_train};
    #[pymodule_export]
    use crate::team::use_openmp;
}
