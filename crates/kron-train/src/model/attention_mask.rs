//! [`AttentionMask`]: visible keys of each query.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};

use super::body::Attention;

/// Attention mask of one forward pass, shared by all blocks.
#[derive(Debug)]
pub(super) struct AttentionMask {
    /// Number of keys of each text, without padding.
    lens: Vec<usize>,
    attention: Attention,
    /// Mask as a tensor, made on first use.
    tensor: OnceLock<Tensor>,
}

impl AttentionMask {
    pub fn new(lens: &[usize], attention: Attention) -> Self {
        Self { lens: lens.to_vec(), attention, tensor: OnceLock::new() }
    }

    /// Copies the mask for an op that needs no tensor.
    pub fn without_tensor(&self) -> Self {
        Self::new(&self.lens, self.attention)
    }

    /// Returns the number of leading keys that a query of a text attends to.
    pub fn visible_keys(&self, text: usize, query: usize) -> usize {
        match self.attention {
            Attention::Bidirectional => self.lens[text],
            Attention::Causal => self.lens[text].min(query + 1),
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
