//! Adapters on disk and on paper: PEFT, LyCORIS and our own file read as the one
//! type [`Adapter`], written in any of these formats, planned, measured, and
//! matched with a base model.
//!
//! ```text
//! ours.safetensors ───────────────┐              ┌─ ours.safetensors
//! PEFT folder: LoRA, rsLoRA, LoKr ┼─ read ─────▶ ┼─ PEFT folder: LoKr, LoRA       ◀── write
//! LyCORIS, Kohya, diffusers ──────┘   .adapter   └─ lycoris.safetensors: LoKr
//! ```
//!
//! A reader refuses by name what ΔW = s·A ⊗ (B·C) cannot express, a writer what
//! its format cannot. Factors are copied bit for bit; every rounding is reported
//! in the notes. Nothing is printed, and a file or folder appears whole or not at all.
//!
//! # A tour
//!
//! Make an adapter, write it in our format, and read it back:
//!
//! ```
//! use kron_adapter::{Adapter, Format, IfExists, Layer, OutputFormat, ScaleRule, Scaling};
//! use kron_core::{KronShape, LayerDims, Split, Theta};
//!
//! let shape = KronShape::kron(LayerDims { d_out: 12, d_in: 8 }, Split { a_out: 3, a_in: 2 }, 1)?;
//! let scaling = Scaling::new(16.0, 8, ScaleRule::AlphaOverR)?; // s = alpha / r = 2
//! let layer = Layer::new("model.layers.0.q_proj", scaling, Theta::random(shape, 1))?;
//! let adapter = Adapter::new(vec![layer])?;
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("adapter.safetensors");
//! kron_adapter::write(&adapter, OutputFormat::Kron, &file, IfExists::Refuse)?;
//! let loaded = kron_adapter::read(&file)?;
//! assert_eq!((loaded.format, &loaded.adapter), (Format::Kron, &adapter));
//!
//! // Any LoRA engine loads the same ΔW from a PEFT folder.
//! let lora = folder.path().join("lora");
//! kron_adapter::write(&adapter, OutputFormat::Lora(Default::default()), &lora, IfExists::Refuse)?;
//! assert_eq!(kron_adapter::read(&lora)?.format, Format::PeftLora);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Then, by task:
//!
//! | task | module |
//! |---|---|
//! | convert between formats | [`read`], [`write`](fn@write), [`OutputFormat`] |
//! | match an adapter with a model's tensors | [`resolve`] |
//! | read what lies beyond ΔW, such as DoRA, for a merge | [`read_whole`], [`extras`] |
//! | find a model's files | [`model_files`] |
//! | norms, spectra, cosine, the nearest Kron-LoRA of a LoRA | [`algebra`] |
//! | several adapters as one | [`combine`] |
//! | many users' adapters within a limit of memory | [`FilePool`] |
//! | choose shapes for a budget of parameters | [`plan`] |
//! | read a GGUF model, dequantise it, name its tensors as Hugging Face does | [`gguf`] |
//! | read any safetensors file strictly | [`Tensors`], [`io::Layout`] |
//! | write a file atomically | [`io::write_atomic`] |
//! | bound what a file may cost | [`limits`] |
//! | print names from a file | [`text`] |
//!
//! `examples/01_convert.rs` walks through a conversion.
#![forbid(unsafe_code)]

mod adapter;
pub mod algebra;
pub mod combine;
mod dotted_path;
pub mod elements;
mod error;
pub mod extras;
mod file_pool;
mod format;
pub mod gguf;
pub mod io;
pub mod kron_file;
mod left_out;
pub mod limits;
mod lokr;
pub mod lycoris;
mod lycoris_names;
mod matrix;
mod metadata_alpha;
pub mod model_files;
mod output;
mod output_format;
mod pattern;
pub mod peft;
pub mod plan;
mod read;
mod read_options;
pub mod resolve;
mod tensor_data;
mod tensor_names;
mod tensors;
pub mod text;
mod trained;

pub use adapter::{Adapter, Layer, ScaleRule, Scaling};
pub use error::{Error, Kind, Result, Suggestion};
pub use file_pool::{FilePool, FilePoolStats, PooledAdapter};
pub use format::{Format, Loaded, Progress};
pub use io::IfExists;
pub use left_out::LeftOut;
pub use output::{Output, write_new_folder, write_output};
pub use output_format::{OutputFormat, write};
pub use pattern::Pattern;
pub use read::{diffusers_file, read, read_whole, read_with};
pub use read_options::ReadOptions;
pub use tensors::Tensors;
pub use trained::TrainedTensor;
