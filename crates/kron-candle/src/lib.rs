//! Kron-LoRA, LoRA and KronA for candle: a frozen linear layer with a trained adapter,
//! y = x·Wᵀ + bias + s·x·(A ⊗ (B·C))ᵀ, forward and backward by kron-core.
//!
//! ```text
//! Linear, TrainableDelta ─ KronLinear ─ forward ─ custom op on (x, θ) ─ kron-core
//! VarBuilder ─── Inject ────── Adapters ─ θ: optimizer
//! load ──────────┘               └─ save, save_as: our file, PEFT folder, LyCORIS file
//! ```
//!
//! Ten lines of a training loop:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use kron_candle::{AdamW, Gradients, Group, Inject, KronShape, ScaleRule, Scaling, Split};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let weights = VarMap::new();
//! # let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
//! # let x = Tensor::randn(0f32, 1.0, (32, 96), &Device::Cpu)?;
//! # let target = Tensor::randn(0f32, 1.0, (32, 64), &Device::Cpu)?;
//! let inject = Inject::new(&["q_proj"], 7, |_, dims| {
//!     let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?;
//!     Ok((shape, Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?))
//! })?;
//! let layer = inject.linear(96, 64, true, vb.pp("layer.0.q_proj"))?; // in the model's own code
//! let adapters = inject.finish()?;
//! let groups = adapters.vars().into_iter().map(Group::from).collect();
//! let mut optimizer = AdamW::new(groups, Default::default())?;
//! let loss = candle_nn::loss::mse(&layer.forward_with(&x, None)?, &target)?;
//! let mut gradients = Gradients::new(&optimizer.vars());
//! gradients.add(&loss.backward()?, 1.0)?;
//! optimizer.step(&gradients, 1e-3)?;
//! # Ok(()) }
//! ```
//!
//! The examples `01_linear`, `02_inject`, `03_train` and `04_serve`, a thousand adapters in one batch, show each part in full.
//!
//! θ of a layer is one flat float32 [`Var`](candle_core::Var) `[A | B | C]`, so its gradient, its optimizer state and
//! its bytes on disk are one tensor each. The base and the adapter write into one output buffer, and so do their
//! gradients with respect to x. The backward pass needs only x and T = X·Cᵀ of the activations. Dropout is an argument
//! of a call; layers have no training mode.
//!
//! An [`unfused`](TrainableDelta::unfused) adapter is computed by candle's own ops and autograd, for comparison.
//!
//! Everything runs on candle's CPU device and, with the feature `cuda`, on its CUDA devices. A tensor on another
//! device than x is an error.
//!
//! [`models`] has decoders and encoders whose linear layers take adapters. The models of candle-transformers take none:
//! their layers hold candle's `Linear` or `QMatMul`, concrete types that multiply with a tensor, and a `VarBuilder` can
//! give them another tensor, W + ΔW, but no other operation; docs/LINKING.md has the places.
#![deny(unsafe_code)]

mod adapters;
mod base;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device_ops;
mod error;
mod files;
mod frozen;
mod gradients;
mod grouped;
mod inject;
mod linear;
pub mod models;
mod op;
mod optim;
mod product;
mod quantised;
mod residual;
mod segments;
mod served;
mod shapes;
mod terms;
mod trace;
mod trainable_delta;
mod unfused;
mod views;

pub use adapters::Adapters;
pub use base::FrozenLinear;
pub use error::adapter_error;
pub use files::load;
pub use gradients::Gradients;
pub use inject::Inject;
pub use kron_adapter::algebra::Join;
pub use kron_adapter::peft::LoraOptions;
pub use kron_adapter::plan::{Method, Model};
pub use kron_adapter::{Adapter, IfExists, Layer, OutputFormat, Pattern, ScaleRule, Scaling, TrainedTensor};
pub use kron_adapter::{FilePool, FilePoolStats, PooledAdapter};
pub use kron_core::{
    Accum, Dropout, DropoutKey, KronOp, KronShape, LayerDims, Operands, PoolEntry, Scale, Split, Theta,
};
pub use linear::KronLinear;
pub use optim::{AdamW, AdamWConfig, Group, Part};
pub use product::{Threads, product, product_time};
pub use quantised::QuantisedLinear;
pub use served::{AdapterBatch, ServedModules};
pub use trace::Trace;
pub use trainable_delta::TrainableDelta;
