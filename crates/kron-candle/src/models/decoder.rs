//! Decoders of the LLaMA family: LLaMA, Mistral, Qwen2 and Qwen3, with the tensor names of Hugging Face's checkpoints.

use std::sync::Arc;

use crate::{AdapterBatch, DropoutKey, KronLinear};
use candle_core::{Device, Error, Result, Tensor, bail};

use super::block::{Block, Pass, ServedText};
use super::body::{Attention, Body, detach_in_evaluation};
use super::decoder_config::DecoderConfig;
use super::kv_cache::KvCache;
use super::layers::{Embedding, Layers};
use super::ops::{AttentionMask, rms_norm};
use super::rope::Rope;
use super::tokens::{Segment, Tokens};
use super::traced_block::{is_traceable, traced_block};

/// Decoder of any [`DecoderKind`](super::DecoderKind).
#[derive(Debug)]
pub struct Decoder {
    words: Embedding,
    blocks: Vec<Arc<Block>>,
    /// True if a training pass keeps the inputs of its blocks alone.
    recomputes: bool,
    norm: Tensor,
    device: Device,
    head: KronLinear,
    rope: Rope,
    positions: usize,
    eps: f32,
}

impl Decoder {
    /// Builds the decoder from its layers.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or an adapter does not fit.
    pub fn new(config: &DecoderConfig, layers: &Layers) -> Result<Self> {
        config.check()?;
        let (hidden, vocab, at) = (config.hidden_size, config.vocab_size, layers.at("model"));
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(config, &at.at(format!("layers.{i}"))));
        let words = at.embedding(vocab, hidden, "embed_tokens")?;
        let head = match config.tie_word_embeddings {
            true => words.as_linear(),
            false => layers.linear(hidden, vocab, false, "lm_head")?,
        };
        Ok(Self {
            words,
            blocks: blocks.map(|block| block.map(Arc::new)).collect::<Result<_>>()?,
            recomputes: false,
            norm: at.vector(hidden, "norm.weight")?,
            device: layers.device().clone(),
            head,
            rope: Rope::new(config.frequencies()?),
            positions: config.positions(),
            eps: config.rms_norm_eps as f32,
        })
    }

    fn check_len(&self, len: usize) -> Result<()> {
        if len > self.positions {
            let positions = self.positions;
            return Err(Error::msg(format!(
                "a text has {len} tokens, but the model has {positions} positions"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Decoder {
    pub(super) fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }
}

impl Body for Decoder {
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor> {
        self.check_len(tokens.positions())?;
        let mut x = self.words.forward(&tokens.tensor(&self.device)?)?;
        let mask = AttentionMask::new(tokens.segments(), 0, Attention::Causal);
        let rotation = self.rope.rotation(tokens.positions(), &x)?;
        let pass = Pass { mask, rotation, key: dropout };
        for block in &self.blocks {
            x = match dropout.is_some() && is_traceable(block, &x) {
                true => traced_block(block, &x, &pass, !self.recomputes)?,
                false => detach_in_evaluation(block.forward(&x, &pass, None)?, dropout),
            };
        }
        rms_norm(&x, &self.norm, self.eps)
    }

    fn recompute(&mut self) -> Result<()> {
        if !self.blocks.iter().all(|block| is_traceable(block, &self.norm)) {
            return Err(Error::msg(
                "checkpointing is on, but it recomputes blocks of frozen weights with fused adapters, in float32 on the CPU",
            ));
        }
        self.recomputes = true;
        Ok(())
    }

    fn continued(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let (past, len) = (cache.len(), cache.len() + ids.len());
        self.check_len(len)?;
        let Some(last) = ids.len().checked_sub(1) else {
            return Err(Error::msg(
                "a text of no token has no last one, but it is what the next token follows",
            ));
        };
        let mut x = self.words.forward(&Tensor::from_slice(ids, (1, ids.len()), &self.device)?)?;
        let mask = AttentionMask::new(vec![vec![Segment::whole(0, len)]], past, Attention::Causal);
        let rotation = cache.rotation(&self.rope, len, &x)?;
        let pass = Pass { mask, rotation, key: None };
        for (block, cache) in self.blocks.iter().zip(cache.blocks(self.blocks.len())) {
            x = block.forward(&x, &pass, Some(cache))?.detach();
        }
        cache.set_len(len);
        rms_norm(&x.narrow(1, last, 1)?, &self.norm, self.eps)
    }

    /// The tokens of all texts lie one after the other, so that a layer is one call whatever the texts' lengths.
    fn next_logits(&self, new: &[Vec<u32>], caches: &mut [KvCache], batch: &AdapterBatch) -> Result<Tensor> {
        let counts: Vec<usize> = new.iter().map(Vec::len).collect();
        if [new.len(), caches.len()] != [batch.texts(); 2] || new.is_empty() {
            bail!(
                "there are new tokens of {} texts, {} caches and adapters of {} texts, but all three are of one number, at least 1",
                new.len(),
                caches.len(),
                batch.texts()
            );
        }
        if !self.blocks.iter().all(|block| block.layers().iter().all(|layer| layer.module().is_some())) {
            bail!(
                "the model was not built by Inject::serving, so that its layers would not find their adapters"
            );
        }
        if let Some(text) = counts.iter().position(|&count| count == 0) {
            bail!("text {text} has no new token, but it is what the next token follows");
        }
        for (cache, count) in caches.iter().zip(&counts) {
            self.check_len(cache.len() + count)?;
        }
        let mut x = self.words.forward(&Tensor::new(new.concat(), &self.device)?.unsqueeze(0)?)?;
        let (mut texts, mut first) = (Vec::with_capacity(new.len()), 0);
        for (cache, count) in caches.iter_mut().zip(&counts) {
            let (past, len) = (cache.len(), cache.len() + count);
            let mask = AttentionMask::new(vec![vec![Segment::whole(0, len)]], past, Attention::Causal);
            let rotation = cache.rotation(&self.rope, len, &x)?;
            texts.push(ServedText { places: first..first + count, mask, rotation });
            first += count;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let caches = caches.iter_mut().map(|cache| &mut cache.blocks(self.blocks.len())[i]);
            x = block.forward_served(&x, &texts, caches, &batch.over(&counts))?.detach();
        }
        for (cache, count) in caches.iter_mut().zip(&counts) {
            cache.set_len(cache.len() + count);
        }
        let last = Tensor::from_iter(texts.iter().map(|text| text.places.end as u32 - 1), &self.device)?;
        let last = rms_norm(&x.squeeze(0)?.index_select(&last, 0)?, &self.norm, self.eps)?;
        batch.over(&vec![1; texts.len()]).forward(&self.head, &last)
    }

    fn output(&self) -> Option<&KronLinear> {
        Some(&self.head)
    }

    fn attention(&self) -> Attention {
        Attention::Causal
    }
}
