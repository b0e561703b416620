//! Token sequences of one batch, padded on the right to the longest.

use candle_core::{Device, Tensor};

use crate::error::Result;

/// Token ids, n × len.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Ids row by row; padding is 0.
    pub ids: Vec<u32>,
    /// Number of tokens of each row.
    pub lens: Vec<usize>,
    /// Length of the longest row.
    pub len: usize,
}

impl Tokens {
    /// Pads rows to the longest of them.
    pub fn new<R: AsRef<[u32]>>(rows: &[R]) -> Self {
        let lens: Vec<usize> = rows.iter().map(|row| row.as_ref().len()).collect();
        let len = lens.iter().copied().max().unwrap_or(0);
        let mut ids = vec![0; rows.len() * len];
        for (padded, row) in ids.chunks_mut(len.max(1)).zip(rows) {
            padded[..row.as_ref().len()].copy_from_slice(row.as_ref());
        }
        Self { ids, lens, len }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.lens.len()
    }

    /// Returns the number of tokens, without padding.
    pub fn count(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Returns the ids as a tensor, n × len.
    ///
    /// # Errors
    /// candle fails.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.ids, (self.rows(), self.len), device)?)
    }
}

/// Sequences with their classes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, n × len.
    pub tokens: Tokens,
    /// Classes, n.
    pub labels: Vec<u32>,
}

impl Batch {
    /// Selects examples of a set by their indices.
    pub fn of(examples: &[(Vec<u32>, u32)], which: &[usize]) -> Self {
        let rows: Vec<&[u32]> = which.iter().map(|&i| examples[i].0.as_slice()).collect();
        let labels = which.iter().map(|&i| examples[i].1).collect();
        Self { tokens: Tokens::new(&rows), labels }
    }
}
