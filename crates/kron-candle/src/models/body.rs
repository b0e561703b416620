//! [`Body`]: a pretrained model without its head, and the pooling of its hidden states.

use crate::{AdapterBatch, DropoutKey, KronLinear};
use candle_core::{DType, Error, Result, Tensor};

use super::kv_cache::KvCache;
use super::tokens::Tokens;

/// Attention pattern of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Every token attends to all tokens; pooling takes their mean.
    Bidirectional,
    /// A token attends to itself and the tokens before it; pooling takes the last one.
    Causal,
}

/// Pretrained model without a head.
pub trait Body {
    /// Returns the hidden states of padded tokens, n × len × hidden.
    ///
    /// A key trains: it selects the dropout masks, and the autograd graph is kept. Without a key the graph is
    /// dropped after every block, so an evaluation takes the memory of one block.
    ///
    /// # Errors
    /// candle fails.
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor>;

    /// Makes training passes keep the inputs of blocks alone, and compute the rest again in the backward pass.
    ///
    /// # Errors
    /// The model cannot do that.
    fn recompute(&mut self) -> Result<()> {
        Err(Error::msg("checkpointing is on, but only a decoder's blocks are recomputed"))
    }

    /// Returns the hidden state of the last of some tokens that follow those of the cache, 1 × 1 × hidden, and adds them
    /// to the cache. The autograd graph is dropped.
    ///
    /// # Errors
    /// There is no token, the model has too few positions or is an encoder, or candle fails.
    fn continued(&self, _ids: &[u32], _cache: &mut KvCache) -> Result<Tensor> {
        Err(Error::msg("the model predicts no next token: it is an encoder"))
    }

    /// Returns the logits of the token after each of several texts, texts × vocabulary, each text with its own adapter.
    ///
    /// `new` has the tokens of each text that follow those of its cache, to which they are added; texts may have any
    /// number of them. The model was built by [`Inject::serving`](crate::Inject::serving); a text without an adapter
    /// gets the base's logits.
    ///
    /// # Errors
    /// There is no text, the numbers of texts, caches and rows of the batch differ, or a text has no new token; the
    /// model has too few positions, is an encoder, or is not on the CPU; or candle fails.
    fn next_logits(
        &self,
        _new: &[Vec<u32>],
        _caches: &mut [KvCache],
        _batch: &AdapterBatch,
    ) -> Result<Tensor> {
        Err(Error::msg("the model predicts no next token: it is an encoder"))
    }

    /// Returns the layer that maps a hidden state to the logits of the next token; `None` for an encoder.
    fn output(&self) -> Option<&KronLinear>;

    /// Returns the logits of the next token for hidden states, … × vocabulary; `None` for an encoder.
    ///
    /// # Errors
    /// candle fails.
    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.output().map(|output| output.forward_with(hidden, None)).transpose()
    }

    /// Returns the attention pattern.
    fn attention(&self) -> Attention;
}

/// Pools each text into one float32 vector, n × hidden: the mean of its tokens, or the last one.
///
/// # Errors
/// candle fails.
pub fn pool(attention: Attention, hidden: &Tensor, tokens: &Tokens) -> Result<Tensor> {
    let mut weights = vec![0f32; tokens.rows() * tokens.len];
    for (row, &len) in weights.chunks_mut(tokens.len.max(1)).zip(&tokens.lens) {
        match attention {
            Attention::Bidirectional => row[..len].fill(1.0 / len as f32),
            Attention::Causal => row[len - 1] = 1.0,
        }
    }
    let weights = Tensor::from_vec(weights, (tokens.rows(), 1, tokens.len), hidden.device())?;
    weights.matmul(&hidden.to_dtype(DType::F32)?)?.squeeze(1)
}

/// Detaches a block's output from the autograd graph, unless the pass trains.
pub(super) fn detach_in_evaluation(x: Tensor, dropout: Option<DropoutKey>) -> Tensor {
    if dropout.is_some() { x } else { x.detach() }
}
