//! GGUF files, versions 2 and 3: a model's metadata and its quantised tensors.
//!
//! ```text
//! file ── header: metadata, names, shapes, offsets ── Gguf ── Blocks of one tensor ── rows as f32
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
mod quants;
mod reader;
mod value;

pub use block_type::BlockType;
pub use blocks::Blocks;
pub use header::{Gguf, GgufTensor};
pub use hugging_face::{HuggingFace, HuggingFaceTensor};
pub use value::{Array, Value};
