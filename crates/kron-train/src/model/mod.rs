//! Pretrained models: from a folder of weights to hidden states.

mod bert;
mod body;
mod gguf;
mod kv_cache;
mod layers;
mod llama;
mod llama2c;
mod load;
mod next_token;
mod ops;
mod rope;
mod sizes;

pub use bert::{Bert, BertConfig};
pub use body::{Attention, Body, pool};
pub use kv_cache::KvCache;
pub use llama::{Llama, LlamaConfig};
pub use load::{Config, Files, Weights, build};
pub use next_token::{answer_loss, next_token_loss};
pub use rope::RopeConfig;
