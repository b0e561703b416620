//! Pretrained models: from a folder to hidden states.

mod bert;
mod composed;
mod decoder;
mod fused;
mod llama;
mod load;
mod rope;
mod stories;

use candle_core::{DType, Tensor};
use kron_candle::DropoutKey;

use crate::data::Tokens;
use crate::error::Result;
pub use bert::{Bert, BertConfig};
pub use decoder::next_token_loss;
pub use llama::{Llama, LlamaConfig};
pub use load::{Config, Files, Weights, build};
pub use rope::Rope;

/// What a body's hidden states are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Every token sees every other: the mean stands for the text.
    Both,
    /// A token sees what came before: the last one stands for the text.
    Back,
}

/// A pretrained model without a head.
pub trait Body {
    /// Hidden states, n × len × hidden, of padded tokens. Without a key they are looked at and not trained on:
    /// no graph is kept over the blocks, so that a look at a set takes the memory of one.
    ///
    /// # Errors
    /// What candle refuses.
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor>;

    /// Scores of the next token for hidden states, … × vocabulary; `None` for a
    /// body that predicts none.
    ///
    /// # Errors
    /// What candle refuses.
    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>>;

    /// Which tokens a token sees.
    fn sight(&self) -> Sight;
}

/// One vector a text, n × hidden, in float32: the mean of its tokens, or the last of them.
///
/// # Errors
/// What candle refuses.
pub fn pool(sight: Sight, hidden: &Tensor, tokens: &Tokens) -> Result<Tensor> {
    let mut weights = vec![0f32; tokens.rows() * tokens.len];
    for (row, &len) in weights.chunks_mut(tokens.len.max(1)).zip(&tokens.lens) {
        match sight {
            Sight::Both => row[..len].fill(1.0 / len as f32),
            Sight::Back => row[len - 1] = 1.0,
        }
    }
    let weights = Tensor::from_vec(weights, (tokens.rows(), 1, tokens.len), hidden.device())?;
    Ok(weights.matmul(&hidden.to_dtype(DType::F32)?)?.squeeze(1)?)
}

/// A block's output, with the graph that led to it where it is trained on.
fn kept(x: Tensor, dropout: Option<DropoutKey>) -> Tensor {
    if dropout.is_some() { x } else { x.detach() }
}
