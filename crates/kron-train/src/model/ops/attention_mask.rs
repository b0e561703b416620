//! [`AttentionMask`]: visible keys of each query.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

use crate::model::body::Attention;

/// Attention mask of one forward pass, shared by all blocks.
#[derive(Clone, Debug)]
pub(in crate::model) struct AttentionMask {
    /// Number of keys of each text, without padding.
    lens: Vec<usize>,
    /// Number of keys before the first query, which a cache holds.
    past: usize,
    attention: Attention,
    /// Mask as a tensor, made on first use.
    tensor: Arc<OnceLock<Tensor>>,
}

impl AttentionMask {
    pub fn new(lens: &[usize], past: usize, attention: Attention) -> Self {
        Self { lens: lens.to_vec(), past, attention, tensor: Arc::default() }
    }

    /// Returns the position of the first query.
    pub const fn past(&self) -> usize {
        self.past
    }

    /// Returns the number of queries of a text that are tokens; those after them are padding.
    pub fn queries(&self, text: usize) -> usize {
        self.lens[text].saturating_sub(self.past)
    }

    /// Returns the number of keys of a text.
    pub fn keys(&self, text: usize) -> usize {
        self.lens[text]
    }

    /// Returns the number of leading keys that a query of a text attends to.
    pub fn visible_keys(&self, text: usize, query: usize) -> usize {
        match self.attention {
            Attention::Bidirectional => self.lens[text],
            Attention::Causal => self.lens[text].min(self.past + query + 1),
        }
    }

    /// Returns the mask to add to scores, n × 1 × queries × keys: 0 for visible keys and −∞ for the others.
    pub fn tensor(&self, queries: usize, keys: usize, device: &Device) -> Result<&Tensor> {
        if let Some(tensor) = self.tensor.get() {
            return Ok(tensor);
        }
        let mut mask = vec![f32::NEG_INFINITY; self.lens.len() * queries * keys];
        for (row, mask) in mask.chunks_mut(keys).enumerate() {
            mask[..self.visible_keys(row / queries, row % queries)].fill(0.0);
        }
        let tensor = Tensor::from_vec(mask, (self.lens.len(), 1, queries, keys), device)?;
        Ok(self.tensor.get_or_init(|| tensor))
    }
}
