//! Change of a band of rows of a tensor: ΔW is added, or trained values take its place.

use kron_adapter::elements::first_not_finite;
use kron_adapter::{Layer, TrainedTensor, with_dtype};
use kron_core::{
    Accum, Backend, Cpu, Dtype, Element, Inner, KronOp, KronShape, LayerDims, Merge, Outer, Pass, Split,
    Theta,
};
use ndarray::ArrayViewMut2;
use rayon::prelude::*;

use crate::{Error, Result};

// The bytes of a safetensors file, which are little-endian, are used as values without conversion.
const _: () = assert!(cfg!(target_endian = "little"), "kron merge needs a little-endian machine");

/// Bytes of a band. A band is small enough to stay in cache between reading and writing, and
/// large enough that packing C once for each band costs little.
pub const BAND: usize = 4 << 20;

/// Change of one tensor of the model, in its dtype.
pub struct Fold<'a> {
    change: Change<'a>,
    dtype: Dtype,
    rows: usize,
    columns: usize,
}

enum Change<'a> {
    /// ΔW, in the orientation of the tensor.
    Add(KronOp, Theta),
    /// The values of a trained tensor.
    Replace(&'a [f32]),
}

impl<'a> Fold<'a> {
    /// Takes a layer's ΔW, or its transpose (A ⊗ (B·C))ᵀ = Aᵀ ⊗ (Cᵀ·Bᵀ).
    ///
    /// # Errors
    /// Never for a valid layer.
    pub fn add(layer: &Layer, dtype: Dtype, is_transposed: bool) -> kron_core::Result<Self> {
        let theta = if is_transposed { transpose(layer.theta())? } else { layer.theta().clone() };
        let op = KronOp::new(*theta.shape(), layer.scaling().scale());
        let (rows, columns) = (op.shape.d_out(), op.shape.d_in());
        Ok(Self { change: Change::Add(op, theta), dtype, rows, columns })
    }

    /// Takes a trained tensor, whose rows lie along its last dimension.
    pub fn replace(tensor: &'a TrainedTensor, dtype: Dtype) -> Self {
        let columns = tensor.shape().last().copied().unwrap_or(1);
        let rows = tensor.values().len() / columns;
        Self { change: Change::Replace(tensor.values()), dtype, rows, columns }
    }

    /// Returns the first row and the bytes of each band, in order.
    pub fn bands(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rows, width) = (self.rows, self.columns * self.dtype.size());
        let band = (BAND / width).clamp(1, rows);
        (0..rows).step_by(band).map(move |first| (first, band.min(rows - first) * width))
    }

    /// Adds the rows of ΔW from `first_row` on to a band of W, or replaces the band.
    ///
    /// # Errors
    /// A result is not finite in the dtype.
    pub fn apply(
        &self,
        tensor: &str,
        first_row: usize,
        band: &mut [u8],
        workspace: &mut Vec<f32>,
    ) -> Result<()> {
        with_dtype!(self.dtype, E => self.apply_to::<E>(tensor, first_row, band, workspace))
    }

    fn apply_to<E: Element>(
        &self,
        tensor: &str,
        first_row: usize,
        band: &mut [u8],
        workspace: &mut Vec<f32>,
    ) -> Result<()> {
        let refused = |e: &dyn std::fmt::Display| Error::data(format!("{tensor}: {e}"));
        let values: &mut [E] = bytemuck::try_cast_slice_mut(band).map_err(|e| refused(&e))?;
        let rows = values.len() / self.columns;
        let what = match &self.change {
            Change::Add(op, theta) => {
                let cpu = Cpu::new();
                let needed = cpu.workspace_len(op, Pass::Merge, rows);
                workspace.resize(needed.max(workspace.len()), 0.0);
                let w =
                    ArrayViewMut2::from_shape((rows, self.columns), &mut *values).map_err(|e| refused(&e))?;
                let (theta, workspace) = (theta.as_slice(), &mut workspace[..]);
                cpu.merge(op, Merge { theta, w, first_row, accum: Accum::Add, workspace })?;
                "W + ΔW"
            }
            Change::Replace(trained) => {
                let trained = trained.iter().skip(first_row * self.columns);
                values.iter_mut().zip(trained).for_each(|(value, trained)| *value = E::from_f32(*trained));
                "the trained tensor"
            }
        };
        if values.par_chunks(1 << 16).all(|chunk| first_not_finite(chunk).is_none()) {
            return Ok(());
        }
        Err(Error::data(format!(
            "{tensor}: a value of {what} in rows {first_row}..{} is not finite in {}",
            first_row + rows,
            self.dtype
        )))
    }
}

/// Returns the factors of the transposed ΔW.
fn transpose(theta: &Theta) -> kron_core::Result<Theta> {
    let shape = theta.shape();
    let a = match shape.outer() {
        Outer::Trained => transposed_matrix(theta.a(), shape.a_in()),
        Outer::One => Vec::new(),
    };
    match shape.inner() {
        Inner::LowRank(r) => {
            let (b, c) = (transposed_matrix(theta.c(), shape.c_in()), transposed_matrix(theta.b(), r));
            Theta::from_factors(transposed(shape)?, &a, &b, &c)
        }
        Inner::Full => {
            Theta::from_factors(transposed(shape)?, &a, &[], &transposed_matrix(theta.c(), shape.c_in()))
        }
    }
}

fn transposed_matrix(m: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| m.iter().skip(j).step_by(columns).copied()).collect()
}

/// Returns the shape of the transposed ΔW.
fn transposed(shape: &KronShape) -> kron_core::Result<KronShape> {
    KronShape::new(
        LayerDims { d_out: shape.d_in(), d_in: shape.d_out() },
        Split { a_out: shape.a_in(), a_in: shape.a_out() },
        shape.outer(),
        shape.inner(),
    )
}
