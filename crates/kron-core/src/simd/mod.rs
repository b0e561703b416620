//! The hand-written CPU kernels, and all `unsafe` code of the crate.
//!
//! There are three rings: the instruction sets ([`vector`] and its implementors),
//! the three kernels over raw pointers ([`down`], [`up`], [`outer`]), and the safe
//! functions of [`Kernels`], which take checked views.
//!
//! Every step of a Kron-LoRA layer is one of three products over the rows (n, a)
//! of a grid:
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
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_panel;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod down;
mod dropout_mask;
mod factor;
mod grid;
mod isa;
mod kernels;
#[cfg(target_arch = "x86_64")]
mod matrix_unit;
mod operands;
mod order;
mod outer;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod portable;
pub mod probe;
mod spin;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod unit;
mod up;
mod vector;

pub(crate) use dropout_mask::keep_mask;
pub(crate) use factor::{Factor, PackFor};
pub(crate) use grid::{RowGrid, RowGridMut};
pub use isa::Isa;
pub(crate) use kernels::{Kernels, Products};
#[cfg(target_arch = "x86_64")]
pub(crate) use matrix_unit::multiply;
pub(crate) use operands::{Groups, Lanes, LanesMut, Rows};
pub(crate) use order::RowOrder;
pub(crate) use outer::RUN;
