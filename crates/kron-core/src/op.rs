//! [`KronOp`]: what to compute, small and `Copy`.

use crate::{Dropout, KronShape, Scale};

/// One adapter's arithmetic: shape, scale and dropout. It owns no memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KronOp {
    /// The factors' sizes.
    pub shape: KronShape,
    /// s = alpha / r.
    pub scale: Scale,
    /// Dropout on the adapter's input, applied only when a call brings a key.
    pub dropout: Dropout,
}

impl KronOp {
    /// An adapter without dropout.
    pub const fn new(shape: KronShape, scale: Scale) -> Self {
        Self { shape, scale, dropout: Dropout::NONE }
    }

    /// The same adapter with dropout.
    pub const fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout, ..self }
    }

    /// Elements of T, n × a_in × r: the only activation kept for backward.
    pub const fn t_len(&self, rows: usize) -> usize {
        rows * self.shape.t_row()
    }
}
