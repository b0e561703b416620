//! [`Heads`]: the heads of an attention layer.

/// Heads of an attention layer, in rows of queries × width and keys × width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) struct Heads {
    /// Number of query heads, a multiple of `keys`.
    pub queries: usize,
    /// Number of key and value heads; consecutive query heads share one.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
}

impl Heads {
    /// Returns the number of query heads of one key head.
    pub const fn shared(self) -> usize {
        self.queries / self.keys
    }

    /// Returns the factor of the scores, 1/√width.
    pub fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}
