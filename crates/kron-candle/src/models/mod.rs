//! Pretrained models whose linear layers take adapters: LLaMA, Mistral, Qwen2 and Qwen3 decoders, BERT, DistilBERT and
//! ModernBERT encoders.
//!
//! ```text
//! config.json ─ Config ──────────────┐
//! VarBuilder, blocks ─┐              ├─ build ─ Body ─ hidden, continued, logits
//! Inject ─────────────┴─ Layers ─────┘            └─ pool, next_token_loss, answer_loss
//! ```
//!
//! Tensors have the names of Hugging Face's checkpoints. A decoder's matrices may stay in the blocks of a GGUF file
//! ([`Layers::with_blocks`]); it generates with a [`KvCache`]. Attention, norms and activations are one fused op each
//! for float32 on the CPU, and candle's own ops elsewhere; a decoder's block that is trained by adapters is a single
//! op, whose backward pass can compute the block again ([`Body::recompute`]).
//!
//! ```
//! use std::collections::HashMap;
//!
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use kron_candle::models::{Config, Layers, Tokens, next_token_loss};
//! use kron_candle::{DropoutKey, Inject, Method};
//!
//! # fn main() -> candle_core::Result<()> {
//! let config = Config::parse(r#"{ "model_type": "qwen3", "vocab_size": 50, "hidden_size": 32,
//!     "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
//!     "intermediate_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
//!     "tie_word_embeddings": true }"#)?; // a folder's config.json
//! # let weights = VarMap::new();
//! # let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
//! # config.build(&Layers::new(&Inject::nothing(), vb))?;
//! # let tensors = weights.data().lock().expect("a lock").iter()
//! #     .map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect::<HashMap<String, Tensor>>();
//! let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu); // and its safetensors
//! let inject = Inject::of_method(&["q_proj", "v_proj"], 1, Method::Lora { rank: 4 }, 8.0)?;
//! let model = config.build(&Layers::new(&inject, vb))?;
//! let adapters = inject.finish()?;
//!
//! let tokens = Tokens::new(&[vec![1, 2, 3], vec![4, 5]]);
//! let hidden = model.hidden(&tokens, Some(DropoutKey { seed: 1, offset: 0 }))?; // a key trains
//! let loss = next_token_loss(&*model, &hidden, &tokens, &[1, 1])?.mean_all()?;
//! let gradients = loss.backward()?;
//! assert!(adapters.vars().iter().all(|theta| gradients.get(theta).is_some()));
//! # Ok(()) }
//! ```

mod bert;
mod block;
mod body;
mod config;
mod decoder;
mod decoder_config;
mod group_trace;
mod kv_cache;
mod layers;
mod modern_bert;
mod modern_bert_config;
mod next_token;
mod norm;
mod ops;
mod rope;
mod sizes;
mod tokens;
mod traced_block;

pub use bert::{Bert, BertConfig};
pub use body::{Attention, Body, pool};
pub use config::Config;
pub use decoder::Decoder;
pub use decoder_config::{DecoderConfig, DecoderKind};
pub use group_trace::GroupTrace;
pub use kv_cache::KvCache;
pub use layers::{BlocksByName, Layers};
pub use modern_bert::ModernBert;
pub use modern_bert_config::{LayerType, ModernBertConfig, RopeByType};
pub use next_token::{answer_loss, next_token_loss};
pub use rope::RopeConfig;
pub use tokens::{Segment, Tokens};
