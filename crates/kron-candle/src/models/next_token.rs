//! Loss of a decoder on the next token.

use candle_core::{Error, Result, Tensor};

use super::body::Body;
use super::ops::output_loss;
use super::tokens::Tokens;

/// Returns the mean of −log p(token | previous tokens) over the tokens `from[text] ..` of each text, n values.
///
/// # Errors
/// As [`answer_loss`].
pub fn next_token_loss(body: &dyn Body, hidden: &Tensor, tokens: &Tokens, from: &[usize]) -> Result<Tensor> {
    let texts = tokens.texts.iter().zip(from);
    let scored: Vec<Vec<usize>> = texts.map(|(text, &from)| (from..text.count()).collect()).collect();
    answer_loss(body, hidden, tokens, &scored)
}

/// Returns the mean of −log p(token | previous tokens) over the tokens of each text whose positions are given, n values.
///
/// Only the hidden states of the tokens before those are multiplied with the output matrix.
///
/// # Errors
/// The body is an encoder, a text has no such token or one without a token before it, or candle fails.
pub fn answer_loss<R: AsRef<[usize]>>(
    body: &dyn Body,
    hidden: &Tensor,
    tokens: &Tokens,
    scored: &[R],
) -> Result<Tensor> {
    let Some(output) = body.output() else {
        return Err(Error::msg("the model predicts no next token: it is an encoder"));
    };
    let (mut places, mut targets, mut weights) = (vec![], vec![], vec![]);
    for (i, (text, scored)) in tokens.texts.iter().zip(scored).enumerate() {
        let (len, scored) = (text.count(), scored.as_ref());
        if scored.is_empty() || scored.iter().any(|at| !(1..len).contains(at)) {
            return Err(Error::msg(format!(
                "a text of {len} tokens has none to predict at some of its places"
            )));
        }
        for &at in scored {
            places.push(tokens.index(text, at - 1) as u32);
            targets.push(tokens.ids[tokens.index(text, at)]);
            weights.push((i as u32, 1.0 / scored.len() as f32));
        }
    }
    let device = hidden.device();
    let places = Tensor::new(places.as_slice(), device)?;
    let chosen = hidden.flatten(0, 1)?.index_select(&places, 0)?;
    let losses = output_loss(&chosen, output, &targets)?;
    let (texts, weights): (Vec<u32>, Vec<f32>) = weights.into_iter().unzip();
    let weighted = (losses * Tensor::new(weights.as_slice(), device)?)?;
    let zeros = Tensor::zeros(tokens.texts.len(), weighted.dtype(), device)?;
    zeros.index_add(&Tensor::new(texts.as_slice(), device)?, &weighted, 0)
}
