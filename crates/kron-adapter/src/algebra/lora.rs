//! LoRA in float64.

use kron_core::{Inner, KronShape};
use ndarray::Array2;

/// Side of the LoRA's product up·down that takes A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Join {
    /// (A ⊗ B)·(I ⊗ C), of rank a_in·r.
    Up,
    /// (I ⊗ B)·(A ⊗ C), of rank a_out·r.
    Down,
}

impl Join {
    /// Returns the side for which the equal LoRA has the smaller rank; [`Join::Up`] of two equal ranks.
    pub fn smaller(shape: &KronShape) -> Self {
        if shape.a_in() <= shape.a_out() { Join::Up } else { Join::Down }
    }

    /// Returns the rank of the LoRA equal to a layer of this shape.
    pub fn rank(self, shape: &KronShape) -> usize {
        Self::inner_rank(shape)
            * match self {
                Join::Up => shape.a_in(),
                Join::Down => shape.a_out(),
            }
    }

    /// Returns the columns of B; those of the smaller unit matrix where the inner factor is full.
    fn inner_rank(shape: &KronShape) -> usize {
        match shape.inner() {
            Inner::LowRank(rank) => rank,
            Inner::Full => shape.b_out().min(shape.c_in()),
        }
    }
}

/// scale·up·down in float64.
#[derive(Clone, Debug)]
pub struct Lora {
    /// s of the layer.
    pub scale: f64,
    /// d_out × ρ.
    pub up: Array2<f64>,
    /// ρ × d_in.
    pub down: Array2<f64>,
}
