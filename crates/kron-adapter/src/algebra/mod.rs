//! Analysis of ΔW without ΔW: closed forms in float64 on the factors.
//!
//! ```text
//! sv(ΔW) = s·(sv(A) × sv(B·C))           ‖ΔW‖ = s·‖A‖·‖B·C‖
//! ⟨ΔW, ΔW'⟩ = s·s'·⟨A, A'⟩·⟨BᵀB', C·C'ᵀ⟩     for equal splits
//! A ⊗ (B·C) = (A ⊗ B)·(I ⊗ C) = (I ⊗ B)·(A ⊗ C)
//! ```
//!
//! The largest array is d_out × ρ or ρ × d_in with ρ the rank of an equal LoRA. What an analysis costs follows
//! from the shape alone, so that it is checked against the file's [`Limits`](crate::limits::Limits) first.
//!
//! ```
//! use kron_adapter::algebra::{Delta, Join, fit};
//! use kron_core::{KronShape, LayerDims, Split, Theta};
//!
//! let (dims, split) = (LayerDims { d_out: 12, d_in: 8 }, Split { a_out: 3, a_in: 2 });
//! let theta = Theta::random(KronShape::kron(dims, split, 2)?, 1);
//! let delta = Delta::of(0.5, &theta);
//! assert_eq!((delta.rank(Join::Up), delta.rank(Join::Down)), (4, 6)); // a_in·r and a_out·r
//!
//! // The nearest Kron-LoRA of an equal LoRA is the layer itself.
//! let fitted = fit(&delta.lora(Join::Up), split, 2, u128::MAX)?.theta;
//! assert!(delta.relative_distance(&Delta::of(0.5, &fitted))? < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod delta;
mod factor;
mod fit;
mod lora;
mod products;
mod rows;
mod svd;
mod values;

pub use delta::{Delta, effective_rank, scale64};
pub use fit::{Fit, MAX_OUTER, fit};
pub use lora::{Join, Lora};
pub use svd::{Svd, svd, svd_of_product};
