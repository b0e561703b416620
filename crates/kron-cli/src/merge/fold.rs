//! W += ΔW on a band of rows.

use bytemuck::Zeroable;
use half::{bf16, f16};
use kron_core::{Accum, Backend, Cpu, Dtype, Element, Inner, KronOp, Layer, Merge, Outer, Pass, Theta};
use ndarray::ArrayViewMut2;
use rayon::prelude::*;

use super::matching::transposed;
use crate::{Error, Result};

// A safetensors file is little-endian, and its bytes become numbers as they are.
const _: () = assert!(cfg!(target_endian = "little"), "kron merge needs a little-endian machine");

/// Bytes of a band: large enough that packing C once for each costs little.
const BAND: usize = 16 << 20;

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

    /// Passes all rows through `read`, adds ΔW, and gives them to `write`.
    ///
    /// # Errors
    /// What `read` and `write` refuse, and a sum that the dtype cannot hold.
    pub fn run(
        &self,
        tensor: &str,
        read: &mut dyn FnMut(&mut [u8]) -> Result<()>,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        match self.dtype {
            Dtype::F32 => self.bands::<f32>(tensor, read, write),
            Dtype::F16 => self.bands::<f16>(tensor, read, write),
            Dtype::Bf16 => self.bands::<bf16>(tensor, read, write),
        }
    }

    fn bands<E: Element + Zeroable>(
        &self,
        tensor: &str,
        read: &mut dyn FnMut(&mut [u8]) -> Result<()>,
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (rows, columns) = (self.op.shape.d_out(), self.op.shape.d_in());
        let band = (BAND / (columns * size_of::<E>())).clamp(1, rows);
        let mut numbers = vec![E::zeroed(); band * columns];
        let cpu = Cpu::new();
        let mut workspace = vec![0.0; cpu.workspace_len(&self.op, Pass::Merge, band)];
        for first_row in (0..rows).step_by(band) {
            let n = band.min(rows - first_row);
            let numbers = &mut numbers[..n * columns];
            read(bytemuck::cast_slice_mut(numbers))?;
            let w = ArrayViewMut2::from_shape((n, columns), numbers)
                .map_err(|e| Error::data(format!("{tensor}: {e}")))?;
            let (theta, workspace) = (self.theta.as_slice(), &mut workspace[..]);
            cpu.merge(&self.op, Merge { theta, w, first_row, accum: Accum::Add, workspace })
                .map_err(super::data)?;
            if numbers.par_chunks(1 << 16).any(|some| some.iter().any(|v| !v.to_f32().is_finite())) {
                return Err(Error::data(format!(
                    "{tensor}: a number of W + ΔW in rows {first_row}..{} is not finite in {}",
                    first_row + n,
                    self.dtype
                )));
            }
            write(bytemuck::cast_slice(numbers))?;
        }
        Ok(())
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
