//! JSONL to examples to batches.

mod batch;
mod jsonl;
mod order;
mod set;

pub use batch::{Batch, Tokens};
pub use jsonl::{Choice, Labelled, read_choices, read_labelled};
pub use order::{permutation, shuffled_batches};
pub use set::{Dataset, Examples, Question};
