//! A base model on disk: the headers of its safetensors files, and its `config.json` with the sizes of its
//! linear layers. Weights are not read here.

mod base;
mod config;
mod family;
mod linear_layers;

pub use base::{Base, INDEX, Shard, TensorEntry};
pub use config::{CONFIG, Config};
pub use linear_layers::{Layers, linear_layers};
