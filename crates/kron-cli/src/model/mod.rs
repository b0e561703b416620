//! A base model on disk: the headers of its safetensors files, and its linear layers by its `config.json` or by these
//! headers. Weights are not read here.

mod append;
mod base;
mod config;
mod family;
mod linear_layers;
mod scanned;

pub use base::{Base, Shard, TensorEntry};
pub use config::Config;
pub use kron_adapter::model_files::{CONFIG, INDEX, SINGLE};
pub use linear_layers::{Layers, linear_layers};
pub use scanned::{is_embedding, scanned_layers};
