//! Pretrained models: from a model's files to a body of [`kron_candle::models`].

mod fingerprint;
mod gguf;
mod llama2c;
mod load;
mod reader;
mod replaced;
mod shared;

pub use kron_candle::models::{
    Attention, Bert, BertConfig, Body, Config, KvCache, answer_loss, next_token_loss, pool,
};
pub use load::{Files, Weights, build};
