//! The hand-written CPU kernels. All `unsafe` code of the crate is here, in
//! three rings: instruction sets ([`vector`] and its implementors), the three
//! kernels over raw pointers ([`down`], [`up`], [`outer`]), and the safe
//! functions of [`Kernels`], which take checked views.
//!
//! Everything a Kron-LoRA layer does is one of three products over the rows
//! (n, a) of a grid:
//!
//! ```text
//! down     t[row, ρ] (+)= Σ_k x[row, k]·c[ρ, k]      T = X·Cᵀ, dU = dY·B, dA = dU·Tᵀ
//! up       y[row, p] (+)= Σ_ρ u[row, ρ]·b[ρ, p]      Y = U·Bᵀ, dX = dT·C, U = A·T, dT = Aᵀ·dU
//! outer    g[ρ, p]    +=  Σ_row u[row, ρ]·x[row, p]   dB = dYᵀ·U, dC = dTᵀ·X
//! ```

// Plain index loops throughout: a closure inside a `target_feature` function is
// compiled without the feature, and costs a call per vector.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod down;
mod factor;
mod grid;
mod isa;
mod keep;
mod kernels;
mod operands;
mod outer;
mod pack;
mod portable;
pub mod probe;
#[cfg(test)]
mod tests;
mod up;
mod vector;

pub(crate) use factor::Factor;
pub(crate) use grid::{Grid, GridMut};
pub use isa::Isa;
pub(crate) use keep::keep_mask;
pub(crate) use kernels::{Kernels, Products, Side};
pub(crate) use operands::{Groups, Lanes};
