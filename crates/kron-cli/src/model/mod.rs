//! The linear layers of a model, read from its Hugging Face `config.json` without its weights.

mod config;
mod family;
mod linear_layers;

pub use config::{CONFIG, Config};
pub use linear_layers::{Layers, linear_layers};
