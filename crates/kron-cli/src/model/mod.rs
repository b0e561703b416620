//! A base model on disk: the headers of its safetensors files, and its `config.json` with the sizes of its
//! linear layers. Weights are not read here.

mod append;
mod base;
mod config;
mod family;
mod linear_layers;

pub use base::{Base, Shard, TensorEntry};
pub use config::Config;
pub use kron_adapter::model_files::{CONFIG, INDEX};
pub use linear_layers::{Layers, linear_layers};
