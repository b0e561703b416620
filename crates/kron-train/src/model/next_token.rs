//! Loss of a decoder on the next token.

use candle_core::{DType, Tensor};

use super::body::Body;
use crate::data::Tokens;
use crate::error::{Result, invalid};

/// Returns the mean of −log p(token | previous tokens) over the tokens `from[row] ..` of each row, n values.
///
/// # Errors
/// The body is an encoder, a row has no such token, or candle fails.
pub fn next_token_loss(body: &dyn Body, hidden: &Tensor, tokens: &Tokens, from: &[usize]) -> Result<Tensor> {
    let Some(logits) = body.logits(&hidden.narrow(1, 0, tokens.len - 1)?)? else {
        return Err(invalid("the model predicts no next token: it is an encoder"));
    };
    let mut weights = vec![0f32; tokens.rows() * (tokens.len - 1)];
    for (row, (&len, &from)) in tokens.lens.iter().zip(from).enumerate() {
        if from == 0 || from >= len {
            return Err(invalid(format!("a text of {len} tokens has none to predict from token {from} on")));
        }
        weights[row * (tokens.len - 1)..][from - 1..len - 1].fill(1.0 / (len - from) as f32);
    }
    let device = hidden.device();
    let weights = Tensor::from_vec(weights, (tokens.rows(), tokens.len - 1), device)?;
    let next = tokens.tensor(device)?.narrow(1, 1, tokens.len - 1)?.contiguous()?.unsqueeze(2)?;
    let logs = candle_nn::ops::log_softmax(&logits.to_dtype(DType::F32)?, 2)?;
    Ok(logs.gather(&next, 2)?.squeeze(2)?.mul(&weights)?.sum(1)?.neg()?)
}
