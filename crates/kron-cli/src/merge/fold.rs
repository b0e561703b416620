//! W += ΔW on a band of rows.

use half::{bf16, f16};
use kron_adapter::Layer;
use kron_core::{
    Accum, Backend, Cpu, Dtype, Element, Inner, KronOp, KronShape, LayerDims, Merge, Outer, Pass, Split,
    Theta,
};
use ndarray::ArrayViewMut2;
use rayon::prelude::*;

use crate::{Error, Result};

// A safetensors file is little-endian, and its bytes become numbers as they are.
const _: () = assert!(cfg!(target_endian = "little"), "kron merge needs a little-endian machine");

/// Bytes of a band: small enough to stay in cache from being read to being
/// written, large enough that packing C once for each costs little.
pub const BAND: usize = 4 << 20;

/// One layer's ΔW, as the tensor stores it.
pub struct Fold {
    op: KronOp,
    theta: Theta,
    dtype: Dtype,
}

impl Fold {
    /// A layer's ΔW, or its transpose: (A ⊗ (B·C))ᵀ = Aᵀ ⊗ (Cᵀ·Bᵀ).
    ///
    /// # Errors
    /// None that a whole layer can cause.
    pub fn new(layer: &Layer, dtype: Dtype, is_transposed: bool) -> kron_core::Result<Self> {
        let theta = if is_transposed { transpose(layer.theta())? } else { layer.theta().clone() };
        Ok(Self { op: KronOp::new(*theta.shape(), layer.scaling().scale()), theta, dtype })
    }

    /// The first row and the bytes of each band, in order.
    pub fn bands(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rows, width) = (self.op.shape.d_out(), self.op.shape.d_in() * self.dtype.size());
        let band = (BAND / width).clamp(1, rows);
        (0..rows).step_by(band).map(move |first| (first, band.min(rows - first) * width))
    }

    /// Adds ΔW's rows from `first_row` on to a band of W.
    ///
    /// # Errors
    /// A sum that the dtype cannot hold.
    pub fn add(
        &self,
        tensor: &str,
        first_row: usize,
        band: &mut [u8],
        workspace: &mut Vec<f32>,
    ) -> Result<()> {
        match self.dtype {
            Dtype::F32 => self.add_to::<f32>(tensor, first_row, band, workspace),
            Dtype::F16 => self.add_to::<f16>(tensor, first_row, band, workspace),
            Dtype::Bf16 => self.add_to::<bf16>(tensor, first_row, band, workspace),
        }
    }

    fn add_to<E: Element>(
        &self,
        tensor: &str,
        first_row: usize,
        band: &mut [u8],
        workspace: &mut Vec<f32>,
    ) -> Result<()> {
        let refused = |e: &dyn std::fmt::Display| Error::data(format!("{tensor}: {e}"));
        let numbers: &mut [E] = bytemuck::try_cast_slice_mut(band).map_err(|e| refused(&e))?;
        let columns = self.op.shape.d_in();
        let rows = numbers.len() / columns;
        let cpu = Cpu::new();
        let needed = cpu.workspace_len(&self.op, Pass::Merge, rows);
        workspace.resize(needed.max(workspace.len()), 0.0);
        let w = ArrayViewMut2::from_shape((rows, columns), &mut *numbers).map_err(|e| refused(&e))?;
        let (theta, workspace) = (self.theta.as_slice(), &mut workspace[..]);
        let call = Merge { theta, w, first_row, accum: Accum::Add, workspace };
        cpu.merge(&self.op, call)?;
        // Without a branch for each number.
        let finite = |some: &[E]| some.iter().fold(true, |all, v| all & v.to_f32().is_finite());
        if numbers.par_chunks(1 << 16).all(finite) {
            return Ok(());
        }
        Err(Error::data(format!(
            "{tensor}: a number of W + ΔW in rows {first_row}..{} is not finite in {}",
            first_row + rows,
            self.dtype
        )))
    }
}

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
