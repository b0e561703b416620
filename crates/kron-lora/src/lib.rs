//! Kron-LoRA and its family, ΔW = s·A ⊗ (B·C) on a frozen linear layer, in one crate.
//!
//! This crate re-exports the workspace; it has no code of its own. Each part can also be used alone:
//!
//! | here | crate | feature | contents |
//! |---|---|---|---|
//! | the root | [`kron-core`](kron_core) | | shapes, θ, dropout, the trait [`Backend`] and the CPU backend [`Cpu`] |
//! | [`adapter`] | `kron-adapter` | `adapter` (default) | adapter files of this project, PEFT and LyCORIS; budgets; norms and spectra |
//! | `cuda` | `kron-kernels` | `cuda` | the CUDA backend `Cuda`, on raw device pointers and streams |
//! | `candle` | `kron-candle` | `candle` | layers, models with adapters, injection by name and an optimizer for candle |
//! | `burn` | `kron-burn` | `burn` | adapters by name on the linear layers of a model of burn |
//!
//! # A tour
//!
//! **1. A shape.** A splits a layer of d_out × d_in into a_out × a_in blocks; B and C have rank r.
//! LoRA is the same problem with A = \[1\], KronA has a full inner factor.
//!
//! ```
//! use kron_lora::{KronOp, KronShape, LayerDims, Scale, Split, Theta};
//!
//! # fn main() -> kron_lora::Result<()> {
//! let layer = LayerDims { d_out: 768, d_in: 3072 };
//! let kron = KronShape::kron(layer, Split { a_out: 4, a_in: 4 }, 8)?;
//! let lora = KronShape::lora(layer, 8)?;
//! assert_eq!((kron.params(), lora.params()), (7_696, 30_720));
//!
//! let op = KronOp::new(kron, Scale::alpha_over_r(32.0, 8)?);
//! let theta = Theta::init(kron, 1); // [A | B | C], with B = 0: training starts at ΔW = 0
//! assert_eq!(theta.as_slice().len(), op.shape.params());
//! # Ok(())
//! # }
//! ```
//!
//! **2. Forward.** The frozen product X·Wᵀ stays with your library; the adapter adds its share to Y.
//! The caller brings all memory, and T is what backward needs.
//!
//! ```
//! use kron_lora::{Accum, Backend, Cpu, Forward, KronOp, KronShape, LayerDims, Pass, Scale, Split, Theta};
//! use ndarray::Array2;
//!
//! # fn main() -> kron_lora::Result<()> {
//! let shape = KronShape::kron(LayerDims { d_out: 96, d_in: 64 }, Split { a_out: 4, a_in: 2 }, 8)?;
//! let (op, theta) = (KronOp::new(shape, Scale::alpha_over_r(32.0, 8)?), Theta::random(shape, 1));
//! let (cpu, rows) = (Cpu::new(), 5);
//! let x = Array2::from_elem((rows, 64), 0.5_f32);
//! let mut y = Array2::zeros((rows, 96)); // holds X·Wᵀ in a real model
//! let mut t = vec![0.0; op.t_len(rows)];
//! let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Forward, rows)];
//! cpu.forward(&op, Forward {
//!     theta: theta.as_slice(), x: x.view(), y: y.view_mut(), accum: Accum::Add,
//!     t: &mut t, workspace: &mut workspace, dropout: None,
//! })?;
//! assert!(y.iter().all(|y| *y != 0.0));
//! # Ok(())
//! # }
//! ```
//!
//! [`Backend::backward`] adds θ's gradient and computes dX; [`Backend::merge`] folds ΔW into a weight.
//!
//! **3. A file.** An [`adapter::Adapter`] is a list of layers; the module reads and
//! writes it as this project's file, a PEFT folder or a LyCORIS file.
#![cfg_attr(feature = "adapter", doc = "```")]
#![cfg_attr(not(feature = "adapter"), doc = "```ignore")]
//! use kron_lora::adapter::{self, Adapter, IfExists, Layer, OutputFormat, ScaleRule, Scaling};
//! use kron_lora::{KronShape, LayerDims, Theta};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let out = folder.path().join("peft");
//! let shape = KronShape::lora(LayerDims { d_out: 96, d_in: 64 }, 8)?;
//! let scaling = Scaling::new(16.0, 8, ScaleRule::AlphaOverR)?;
//! let layer = Layer::new("model.layers.0.self_attn.q_proj", scaling, Theta::random(shape, 1))?;
//! let format = OutputFormat::Lora(Default::default());
//! adapter::write(&Adapter::new(vec![layer])?, format, &out, IfExists::Refuse)?; // PEFT reads this folder
//! assert_eq!(adapter::read(&out)?.adapter.layers().len(), 1);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub use kron_core::*;

#[cfg(feature = "adapter")]
pub use kron_adapter as adapter;
#[cfg(feature = "burn")]
pub use kron_burn as burn;
#[cfg(feature = "candle")]
pub use kron_candle as candle;
#[cfg(feature = "cuda")]
pub use kron_kernels as cuda;
