//! [`KronOp`]: shape, scale and dropout of one adapter.

use crate::{Dropout, KronShape, Scale};

/// One adapter's arithmetic: shape, scale and dropout. It owns no memory.
///
/// ```
/// use kron_core::{Dropout, KronOp, KronShape, LayerDims, Scale, Split};
///
/// let layer = LayerDims { d_out: 4096, d_in: 4096 };
/// let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8)?;
/// let op = KronOp::new(shape, Scale::alpha_over_r(32.0, 8)?).with_dropout(Dropout::new(0.1)?);
/// // T is the only activation that a forward call keeps: n × a_in × r.
/// assert_eq!(op.t_len(100), 100 * 2 * 8);
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KronOp {
    /// Sizes of the factors.
    pub shape: KronShape,
    /// Factor s of ΔW, such as alpha / r.
    pub scale: Scale,
    /// Dropout on the adapter's input, applied only when a call brings a key.
    pub dropout: Dropout,
}

impl KronOp {
    /// Returns an adapter without dropout.
    pub const fn new(shape: KronShape, scale: Scale) -> Self {
        Self { shape, scale, dropout: Dropout::NONE }
    }

    /// Returns the same adapter with dropout.
    ///
    /// ```
    /// use kron_core::{Dropout, KronOp, KronShape, LayerDims, Scale};
    ///
    /// let shape = KronShape::lora(LayerDims { d_out: 48, d_in: 70 }, 4)?;
    /// let op = KronOp::new(shape, Scale::new(0.5)?);
    /// assert_eq!(op.dropout, Dropout::NONE);
    /// let training = op.with_dropout(Dropout::new(0.25)?); // applied in calls with a key
    /// assert_eq!(training.dropout, Dropout::new(0.25)?);
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    pub const fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout, ..self }
    }

    /// Elements of T, n × a_in × r, the only activation kept for backward; `usize::MAX` if there
    /// are more, which no buffer has.
    pub const fn t_len(&self, rows: usize) -> usize {
        rows.saturating_mul(self.shape.t_row())
    }
}
