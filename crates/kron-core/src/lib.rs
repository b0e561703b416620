//! Kron-LoRA on a frozen linear layer: ΔW = s·A ⊗ (B·C), forward and backward
//! by the reshape identity, never building the Kronecker matrix.
//!
//! ```text
//! forward    T = X·Cᵀ      U = A·T      Y (+)= s·U·Bᵀ
//! backward   dU = s·dY·B   dB += s·Σ dYᵀ·U   dT = Aᵀ·dU   dA += Σ dU·Tᵀ   dC += Σ dTᵀ·X   dX (+)= dT·C
//! ```
//!
//! X is n × d_in, and a row is also a_in × c_in: reshaping is free. LoRA is
//! the same problem with A = \[1\], KronA has a full inner factor.
#![deny(unsafe_code)]

pub mod backend;
mod dropout;
mod element;
mod error;
mod op;
pub mod reference;
mod scale;
mod shape;
#[allow(unsafe_code)]
mod simd;
mod theta;

pub use backend::{Accum, Backend, Backward, Cpu, Forward, Isa, Merge, Pass};
pub use dropout::{Dropout, DropoutKey, PER_BLOCK, philox};
pub use element::{Dtype, Element};
pub use error::{Error, Result};
pub use op::KronOp;
pub use scale::Scale;
pub use shape::{Inner, KronShape, LayerDims, Outer, Split};
pub use theta::Theta;
