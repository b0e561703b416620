//! Pretrained models: from a folder of weights to hidden states.

mod bert;
mod block;
mod body;
mod gguf;
mod kv_cache;
mod layers;
mod llama;
mod llama2c;
mod llama_config;
mod load;
mod next_token;
mod ops;
mod reader;
mod rope;
mod sizes;
mod traced_block;

pub use bert::{Bert, BertConfig};
pub use body::{Attention, Body, pool};
pub use kv_cache::KvCache;
pub use llama::Llama;
pub use llama_config::LlamaConfig;
pub use load::{Files, Weights, build};
pub use next_token::{answer_loss, next_token_loss};
pub use reader::Config;
pub use rope::RopeConfig;
