//! [`Scale`]: the factor s of ΔW, multiplied in exactly one place.

use crate::{Error, Result};

/// s in ΔW = s·A ⊗ (B·C); finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale(f32);

impl Scale {
    /// alpha / r (LoRA, LoKr, Kron-LoRA).
    ///
    /// # Errors
    /// A rank of 0, or an alpha that is not finite.
    pub fn alpha_over_r(alpha: f32, rank: usize) -> Result<Self> {
        Self::checked(alpha, rank, alpha / rank as f32)
    }

    /// alpha / √r (rsLoRA, arXiv 2312.03732).
    ///
    /// # Errors
    /// A rank of 0, or an alpha that is not finite.
    pub fn alpha_over_sqrt_r(alpha: f32, rank: usize) -> Result<Self> {
        Self::checked(alpha, rank, alpha / (rank as f32).sqrt())
    }

    /// The factor itself.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn new(s: f32) -> Result<Self> {
        if !s.is_finite() {
            return Err(Error::Value(format!("scale is {s}, but a scale is finite")));
        }
        Ok(Self(s))
    }

    fn checked(alpha: f32, rank: usize, s: f32) -> Result<Self> {
        if rank == 0 {
            return Err(Error::Value(format!("alpha {alpha} over rank 0: a rank is at least 1")));
        }
        if !alpha.is_finite() {
            return Err(Error::Value(format!("alpha is {alpha}, but an alpha is finite")));
        }
        Self::new(s)
    }

    /// The number.
    pub const fn get(self) -> f32 {
        self.0
    }
}
