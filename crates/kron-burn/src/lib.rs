//! Kron-LoRA, LoRA and KronA for burn: a frozen `Linear` with a trained adapter,
//! y = x·W + b + s·x·(A ⊗ (B·C))ᵀ, forward and backward by kron-core.
//!
//! ```text
//! model ─ Kron::attach ─┬─ the same model: θ rides on each matched weight ─ forward_kron ─ one op ─ kron-core
//!                       └─ Adapters ─ save, save_as: our file, PEFT folder, LyCORIS file
//! ```
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::{AdamWConfig, GradientsParams};
//! use burn::tensor::{Device, Distribution, Tensor};
//! use kron_burn::{Kron, KronForward, KronShape, ScaleRule, Scaling, Split};
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     q_proj: Linear,
//! }
//!
//! # fn main() -> kron_burn::Result<()> {
//! let device = Device::flex().autodiff();
//! let model = Model { q_proj: LinearConfig::new(96, 64).init(&device) };
//! let kron = Kron::new(&["q_proj"], 7, |_, dims| {
//!     let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?;
//!     Ok((shape, Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?))
//! })?;
//! let (mut model, adapters) = kron.attach(model)?; // all else is frozen
//! let mut optimizer = AdamWConfig::new().init();
//! let x = Tensor::<2>::random([32, 96], Distribution::Default, &device);
//! let loss = model.q_proj.forward_kron(x).powf_scalar(2.0).mean(); // instead of forward
//! let gradients = GradientsParams::from_grads(loss.backward(), &model);
//! model = optimizer.step(1e-3, model, gradients);
//! # let _ = (model, adapters);
//! # Ok(()) }
//! ```
//!
//! The example `01_train` trains, saves, reads the file in `kron-candle` and merges.
//!
//! # What computes where
//!
//! | backend, dtype of the weight | `forward_kron` | `forward` |
//! |---|---|---|
//! | Flex; f32, f16, bf16 | one op, kron-core, no ΔW | kron-core's merge: W + ΔW for each call |
//! | any other, and quantised | burn's ops, no ΔW | burn's ops: W + ΔW for each call |
//!
//! * θ is one float32 parameter \[A | B | C\], `MODULE.weight.kron.theta`. Optimizers, records (`.bpk`) and devices
//!   treat it as any other; `materialize` merges it.
//! * x, y and θ are read and written where they are; rows may lie any distance apart. A transposed x is copied once.
//! * A weight or bias that you unfreeze gets its gradient too.
//! * burn has first derivatives alone, and so has the op.
//! * On CubeCL's backends (CUDA, ROCm, wgpu) burn's ops compute. Missing for our CUDA kernels is the stream of a buffer:
//!   CubeCL's pointers are public and its streams are private, so that every call would wait for the device twice.
#![forbid(unsafe_code)]

mod adapter;
mod adapters;
mod attach;
mod dense;
mod linear;
mod op;
mod operands;
mod tree;
mod unfused;

pub use adapter::KronAdapter;
pub use adapters::{Adapters, load};
pub use attach::Kron;
pub use kron_adapter::{
    Adapter, Error, IfExists, Layer, OutputFormat, Pattern, Result, ScaleRule, Scaling, TrainedTensor,
};
pub use kron_core::{Dropout, DropoutKey, KronOp, KronShape, LayerDims, Split, Theta};
pub use linear::KronForward;

/// The README's code, compiled and run: no crate below sees both candle and burn.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;

/// The code of docs/LINKING.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/LINKING.md")]
pub struct Linking;
