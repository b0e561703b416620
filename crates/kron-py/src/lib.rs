//! The extension `kron_lora._kron`: kron-core's calls on the memory of torch's CPU tensors, and the programs.
//!
//! The package's own Python code is the only caller; it checks the tensors and passes their addresses.

mod call;
mod team;

use pyo3::prelude::*;

#[pymodule]
mod _kron {
    #[pymodule_export]
    use crate::call::{backward, forward};
    #[pymodule_export]
    use crate::team::use_openmp;
}
