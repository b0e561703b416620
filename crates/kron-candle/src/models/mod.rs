//! Pretrained models whose linear layers take adapters: from tensors to hidden states.

mod bert;
mod block;
mod body;
mod kv_cache;
mod layers;
mod llama;
mod llama_config;
mod next_token;
mod ops;
mod rope;
mod sizes;
mod tokens;
mod traced_block;

pub use bert::{Bert, BertConfig};
pub use body::{Attention, Body, pool};
pub use kv_cache::KvCache;
pub use layers::{BlocksByName, Embedding, Layers};
pub use llama::Llama;
pub use llama_config::LlamaConfig;
pub use next_token::{answer_loss, next_token_loss};
pub use rope::RopeConfig;
pub use tokens::{Segment, Tokens};
