//! Loss of a decoder on the next token.

use candle_core::Tensor;

use super::body::Body;
use super::ops::output_loss;
use crate::data::Tokens;
use crate::error::{Result, invalid};

/// Returns the mean of −log p(token | previous tokens) over the tokens `from[row] ..` of each row, n values.
///
/// # Errors
/// As [`answer_loss`].
pub fn next_token_loss(body: &dyn Body, hidden: &Tensor, tokens: &Tokens, from: &[usize]) -> Result<Tensor> {
    let rows = tokens.lens.iter().zip(from);
    let scored: Vec<Vec<usize>> = rows.map(|(&len, &from)| (from..len).collect()).collect();
    answer_loss(body, hidden, tokens, &scored)
}

/// Returns the mean of −log p(token | previous tokens) over the tokens of each row whose indices are given, n values.
///
/// Only the hidden states of the tokens before those are multiplied with the output matrix.
///
/// # Errors
/// The body is an encoder, a row has no such token or one without a token before it, or candle fails.
pub fn answer_loss<R: AsRef<[usize]>>(
    body: &dyn Body,
    hidden: &Tensor,
    tokens: &Tokens,
    scored: &[R],
) -> Result<Tensor> {
    let Some(output) = body.output() else {
        return Err(invalid("the model predicts no next token: it is an encoder"));
    };
    let (mut places, mut targets, mut weights) = (vec![], vec![], vec![]);
    for (row, (&len, scored)) in tokens.lens.iter().zip(scored).enumerate() {
        let scored = scored.as_ref();
        if scored.is_empty() || scored.iter().any(|at| !(1..len).contains(at)) {
            return Err(invalid(format!("a text of {len} tokens has none to predict at some of its places")));
        }
        for at in scored {
            places.push((row * tokens.len + at - 1) as u32);
            targets.push(tokens.ids[row * tokens.len + at]);
            weights.push((row as u32, 1.0 / scored.len() as f32));
        }
    }
    let device = hidden.device();
    let places = Tensor::new(places.as_slice(), device)?;
    let chosen = hidden.flatten(0, 1)?.index_select(&places, 0)?;
    let losses = output_loss(&chosen, output, &targets)?;
    let (rows, weights): (Vec<u32>, Vec<f32>) = weights.into_iter().unzip();
    let weighted = (losses * Tensor::new(weights.as_slice(), device)?)?;
    let zeros = Tensor::zeros(tokens.rows(), weighted.dtype(), device)?;
    Ok(zeros.index_add(&Tensor::new(rows.as_slice(), device)?, &weighted, 0)?)
}
