//! GGUF files, versions 2 and 3: a model's metadata and its quantised tensors, and LoRA adapters.
//!
//! ```text
//! file ── header: metadata, names, shapes, offsets ── Gguf ── Blocks of some rows ── rows as f32
//!                                                      │                               │ changed
//! Adapter + names and rows of LlamaTensors ── LoRA ◀───┴────────── GGUF, safetensors ◀─┘
//! ```
//!
//! The header is checked before a tensor is read: every length against the file, the places of the
//! tensors against each other. A shape is rows × columns here; a file lists the columns first. Blocks
//! stay as they are; a few rows at a time are dequantised.
//!
//! Source: the GGUF specification and the formulas of ggml's reference dequantisation, whose results
//! these equal to the bit.

mod block_type;
mod blocks;
mod header;
mod hugging_face;
mod k_quants;
mod lora;
mod quants;
mod reader;
mod value;
mod writer;

pub use block_type::BlockType;
pub use blocks::Blocks;
pub use header::{Gguf, GgufTensor, is_gguf};
pub use hugging_face::{ChangeRows, HuggingFace, HuggingFaceTensor, LlamaTensors};
pub use lora::{GgufLora, read_lora, write_lora};
pub use value::{Array, Value};
