//! Dropout on the CPU. The kernels read a masked copy of some columns of X at a
//! time; the mask is recomputed and never stored.

use crate::simd::{RowGrid, RowGridMut, keep_mask};
use crate::{Accum, Dropout, DropoutKey, Element, KronOp};

/// Columns of each block of X that are masked at a time. A multiple of every step of the kernels.
pub(super) const MASKED_COLUMNS: usize = 256;

/// The mask of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    dropout: Dropout,
    key: DropoutKey,
    a_in: usize,
}

impl Mask {
    /// Returns the mask of `key`, or `None` if no element is dropped.
    pub(super) fn new(op: &KronOp, key: Option<DropoutKey>) -> Option<Self> {
        let key = key?;
        (op.dropout != Dropout::NONE).then(|| Self { dropout: op.dropout, key, a_in: op.shape.a_in() })
    }

    /// Returns 1 / (1 − p).
    pub(super) fn keep_scale(&self) -> f32 {
        self.dropout.keep_scale()
    }

    /// Elements of the scratch of [`Mask::copy`], or of a masked dX, for `rows` rows.
    pub(super) fn scratch_len(op: &KronOp, rows: usize) -> usize {
        if op.dropout == Dropout::NONE {
            return 0;
        }
        rows * op.shape.a_in() * MASKED_COLUMNS.min(op.shape.c_in())
    }

    /// Copies columns k… of each block of m ⊙ X, at most [`MASKED_COLUMNS`] of them; `row` is X's first row,
    /// where no table chooses its rows.
    pub(super) fn copy<'a, E: Element>(
        &self,
        row: usize,
        x: RowGrid<E>,
        k: usize,
        scratch: &'a mut [f32],
    ) -> RowGrid<'a, E> {
        let (n, d_in) = (x.layout().n, x.layout().width);
        let c_in = d_in / self.a_in;
        let cols = MASKED_COLUMNS.min(c_in - k);
        let out: &mut [E] = &mut bytemuck::cast_slice_mut(scratch)[..n * self.a_in * cols];
        let mut keep = [false; MASKED_COLUMNS];
        for (r, out) in out.chunks_exact_mut(cols).enumerate() {
            let (i, first) = (r / self.a_in, r % self.a_in * c_in + k);
            keep_mask(self.dropout, self.key, d_in, x.number(row, i), first, &mut keep[..cols]);
            let x = x.slice(i);
            for (c, (out, keep)) in out.iter_mut().zip(keep).enumerate() {
                *out = if keep { x[first + c] } else { E::from_f32(0.0) };
            }
        }
        RowGrid::new(out, n, self.a_in, (self.a_in * cols, cols), cols)
    }

    /// Computes dX (+)= m ⊙ d for columns k… of each block; d is \[n, a_in, cols\].
    pub(super) fn add<E: Element>(
        &self,
        row: usize,
        d: &[f32],
        k: usize,
        cols: usize,
        dx: &mut RowGridMut<E>,
        accum: Accum,
    ) {
        let d_in = dx.layout().width;
        let c_in = d_in / self.a_in;
        let mut keep = [false; MASKED_COLUMNS];
        for (r, d) in d.chunks_exact(cols).enumerate() {
            let (i, first) = (r / self.a_in, r % self.a_in * c_in + k);
            keep_mask(self.dropout, self.key, d_in, dx.number(row, i), first, &mut keep[..cols]);
            let dx = dx.slice(i);
            for (c, (d, keep)) in d.iter().zip(keep).enumerate() {
                let dx = &mut dx[first + c];
                let d = if keep { *d } else { 0.0 };
                *dx = match accum {
                    Accum::Replace => E::from_f32(d),
                    Accum::Add => E::from_f32(dx.to_f32() + d),
                };
            }
        }
    }
}
