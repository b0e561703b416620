//! Labelled sequences of one batch.

use kron_candle::models::Tokens;

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
