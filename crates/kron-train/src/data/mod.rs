//! Training data: JSONL files, token ids, batches.

mod batch;
mod chat;
mod conventions;
mod conversation;
mod inputs;
mod jsonl;
mod order;
mod set;
mod tokenizer;

pub use batch::Batch;
pub use chat::{ChatTemplate, Message};
pub use conventions::Conventions;
pub use conversation::Conversation;
pub use inputs::Inputs;
pub use jsonl::{Choice, Labelled, read_choices, read_conversations, read_labelled, read_prompts};
pub use kron_candle::models::{Segment, Tokens};
pub use order::{permutation, shuffled_batches};
pub use set::{Dataset, Examples, Question, Row};
pub use tokenizer::{Llama2c, MAX_TEXT, TextStream, Tokenizer};
