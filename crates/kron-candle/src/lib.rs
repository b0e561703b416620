//! Kron-LoRA, LoRA and KronA for candle: a frozen linear layer with a trained
//! adapter, y = x·Wᵀ + bias + s·x·(A ⊗ (B·C))ᵀ, forward and backward by
//! kron-core.
//!
//! ```text
//! Linear, Delta ─ KronLinear ─ forward ─ custom op on (x, θ) ─ kron-core
//! VarBuilder ─── Inject ────── Adapters ─ θ: optimizer
//! load ──────────┘               └─ save, save_as: our file, PEFT folder, LyCORIS file
//! ```
//!
//! θ of a layer is one flat float32 [`Var`](candle_core::Var) `[A | B | C]`, so
//! that its gradient, its optimizer state and its bytes on disk are one tensor
//! each. The product with W and the adapter's share go into one output buffer,
//! and so do their gradients with respect to x; of the activations only x and
//! T = X·Cᵀ are kept for backward. Dropout is an argument of a call: no layer
//! is in a mode.
//!
//! An adapter that is [`unfused`](Delta::unfused) is computed by candle's own
//! ops and autograd instead, to be compared with.
//!
//! Everything runs on candle's CPU device and, with the feature `cuda`, on its
//! CUDA devices; a tensor on another device than x is refused.
#![deny(unsafe_code)]

#[cfg(feature = "cuda")]
mod cuda;
mod delta;
mod files;
mod gradients;
mod host;
mod inject;
mod linear;
mod memory;
mod op;
mod optim;
mod unfused;

pub use delta::Delta;
pub use files::load;
pub use gradients::Gradients;
pub use inject::{Adapters, Inject, Pattern};
pub use kron_adapter::OutputFormat;
pub use kron_adapter::algebra::Join;
pub use kron_adapter::peft::LoraOptions;
pub use kron_adapter::{Adapter, IfExists, Layer, ScaleRule, Scaling};
pub use kron_core::{Dropout, DropoutKey, KronOp, KronShape, LayerDims, Split, Theta};
pub use linear::KronLinear;
pub use optim::{AdamW, AdamWConfig, Group, Part};

/// The README's code, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
