//! [`Scale`]: the factor s of ΔW.

use crate::{Error, Result};

/// The factor s in ΔW = s·A ⊗ (B·C); finite.
///
/// ```
/// use kron_core::Scale;
///
/// let scale = Scale::alpha_over_r(32.0, 8)?;
/// assert_eq!(scale.get(), 4.0);
/// assert_eq!(Scale::alpha_over_sqrt_r(32.0, 16)?.get(), 8.0);
/// assert_eq!(Scale::new(4.0)?, scale);
/// assert!(Scale::new(f32::NAN).is_err());
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale(f32);

impl Scale {
    /// Returns alpha / r, as in LoRA, LoKr and Kron-LoRA.
    ///
    /// # Errors
    /// Fails if the rank is 0 or alpha is not finite.
    pub fn alpha_over_r(alpha: f32, rank: usize) -> Result<Self> {
        Self::checked(alpha, rank, alpha / rank as f32)
    }

    /// Returns alpha / √r, as in rsLoRA (arXiv 2312.03732).
    ///
    /// # Errors
    /// Fails if the rank is 0 or alpha is not finite.
    pub fn alpha_over_sqrt_r(alpha: f32, rank: usize) -> Result<Self> {
        Self::checked(alpha, rank, alpha / (rank as f32).sqrt())
    }

    /// Returns s itself as a scale.
    ///
    /// # Errors
    /// Fails if s is not finite.
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

    /// Returns s.
    pub const fn get(self) -> f32 {
        self.0
    }
}
