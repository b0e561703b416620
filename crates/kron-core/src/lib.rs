//! Kron-LoRA on a frozen linear layer: ΔW = s·A ⊗ (B·C), forward and backward, without
//! ever building the Kronecker matrix.
//!
//! A row of X is also an a_in × c_in matrix in the same memory, and a row of Y an
//! a_out × b_out matrix. The product with ΔW is then three small products:
//!
//! ```text
//! forward    T = X·Cᵀ      U = A·T      Y (+)= s·U·Bᵀ
//! backward   dU = s·dY·B   dB += s·Σ dYᵀ·U   dT = Aᵀ·dU   dA += Σ dU·Tᵀ   dC += Σ dTᵀ·X   dX (+)= dT·C
//! ```
//!
//! LoRA is the same problem with A = \[1\], and KronA has a full inner factor M in place
//! of B·C. One code path serves the three.
//!
//! # The alphabet
//!
//! The same letter is the same tensor in the documentation, in the code and in files.
//!
//! | symbol | name | shape | meaning |
//! |---|---|---|---|
//! | A | `a` | a_out × a_in | outer factor, small |
//! | B, C | `b`, `c` | b_out × r, r × c_in | inner factor, low rank |
//! | | `d_out`, `d_in` | a_out·b_out, a_in·c_in | sizes of the linear layer |
//! | n | `rows` | | tokens |
//! | X, Y | `x`, `y` | n × d_in, n × d_out | input and output |
//! | T | `t` | n × a_in × r | X·Cᵀ, the only activation kept for backward |
//! | U | `u` | n × a_out × r | A·T, recomputed in backward |
//! | s | `scale` | | alpha / r |
//! | θ | `theta` | a_out·a_in + r·(b_out + c_in) | flat float32 buffer \[A \| B \| C\] |
//!
//! # Forward and backward
//!
//! A [`KronShape`] holds the sizes, a [`KronOp`] adds scale and dropout, and a
//! [`Backend`] such as [`Cpu`] computes. Activations are `f32`, `f16` or `bf16`; θ, T,
//! gradients and every sum are `f32`. The caller brings all memory.
//!
//! ```
//! use kron_core::{
//!     Accum, Backend, Backward, Cpu, Forward, KronOp, KronShape, LayerDims, Pass, Scale, Split, Theta,
//! };
//! use ndarray::Array2;
//!
//! // A 4096 × 4096 layer, A of 16 × 2, rank 8, s = 32 / 8; LoRA of rank 8 has 65 536 parameters.
//! let layer = LayerDims { d_out: 4096, d_in: 4096 };
//! let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8)?;
//! let op = KronOp::new(shape, Scale::alpha_over_r(32.0, 8)?);
//! let theta = Theta::random(shape, 1); // Theta::init starts training, with B = 0
//! assert_eq!(shape.params(), 18_464);
//!
//! // y holds the frozen layer's output for x; the adapter's output is added.
//! let (cpu, rows) = (Cpu::new(), 16);
//! let x = Array2::from_elem((rows, shape.d_in()), 0.5_f32);
//! let mut y = Array2::from_elem((rows, shape.d_out()), 1.0_f32);
//! let mut t = vec![0.0; op.t_len(rows)];
//! let passes = [Pass::Forward, Pass::Backward { dx: true }];
//! let len = passes.map(|pass| cpu.workspace_len(&op, pass, rows));
//! let mut workspace = vec![0.0; len[0].max(len[1])];
//! cpu.forward(&op, Forward {
//!     theta: theta.as_slice(), x: x.view(), y: y.view_mut(), accum: Accum::Add,
//!     t: &mut t, workspace: &mut workspace, dropout: None,
//! })?;
//! assert!(y.iter().any(|&y| y != 1.0));
//!
//! // dY comes from the layers above. The gradient of θ is added to grad, and dX to dx.
//! let (dy, mut dx, mut grad) = (&y - 1.0, Array2::zeros(x.dim()), vec![0.0; shape.params()]);
//! cpu.backward(&op, Backward {
//!     theta: theta.as_slice(), x: x.view(), t: &t, dy: dy.view(),
//!     dx: Some((dx.view_mut(), Accum::Add)), grad: &mut grad, workspace: &mut workspace, dropout: None,
//! })?;
//! assert!(grad.iter().all(|g| g.is_finite()) && dx.iter().any(|&dx| dx != 0.0));
//! # Ok::<(), kron_core::Error>(())
//! ```
//!
//! [`Cpu::forward_segments`] and [`Cpu::backward_segments`] compute rows of many adapters
//! in one call, [`Cpu::forward_group`] and [`Cpu::backward_group`] several adapters on one X.
//! [`Backend::merge`] adds ΔW to a weight, and [`mod@reference`] is the float64 oracle of
//! all three. The folder `examples` has each of them as a program.
#![deny(unsafe_code)]

mod accum;
mod backend;
mod cpu;
mod dropout;
mod element;
mod error;
mod op;
mod operands;
mod product;
pub mod reference;
mod scale;
mod shape;
#[allow(unsafe_code)]
mod simd;
mod theta;
mod threads;

pub use accum::Accum;
pub use backend::{Backend, Backward, Forward, Merge, Pass};
pub use cpu::{
    AdapterGroup, AdapterPool, BackwardGroup, BackwardSegments, Cpu, ForwardGroup, ForwardSegments, Group,
    GroupTerm, PoolEntry, Team,
};
pub use dropout::{Dropout, DropoutKey, PER_BLOCK, philox};
pub use element::{Dtype, Element};
pub use error::{Error, Result};
pub use op::KronOp;
pub use operands::Operands;
pub use product::matrix_unit_product;
pub use scale::Scale;
pub use shape::{Inner, KronShape, LayerDims, Outer, Split};
pub use simd::{Isa, probe};
pub use theta::{Theta, ThetaBuffer};
pub use threads::start_threads;
