//! A Kron-LoRA layer as the LoRA that it is.

use ndarray::{Array2, linalg::kron};

use super::Delta;

/// On which side of the product A stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Join {
    /// (A ⊗ B)·(I ⊗ C), of rank a_in·r.
    Up,
    /// (I ⊗ B)·(A ⊗ C), of rank a_out·r.
    Down,
}

/// scale·up·down in float64.
#[derive(Clone, Debug)]
pub struct Lora {
    /// s, as the layer has it.
    pub scale: f64,
    /// d_out × ρ.
    pub up: Array2<f64>,
    /// ρ × d_in.
    pub down: Array2<f64>,
}

impl Lora {
    /// The same of a larger rank, filled up with zeros; as it is where `rank` is no larger.
    pub fn padded(self, rank: usize) -> Self {
        let Self { scale, up, down } = self;
        let at = |w: &Array2<f64>, i, j| w.get((i, j)).copied().unwrap_or(0.0);
        let rank = rank.max(up.ncols());
        let wide = Array2::from_shape_fn((up.nrows(), rank), |(i, j)| at(&up, i, j));
        let tall = Array2::from_shape_fn((rank, down.ncols()), |(i, j)| at(&down, i, j));
        Self { scale, up: wide, down: tall }
    }
}

impl Join {
    /// The one of smaller rank; [`Join::Up`] of two equal ones.
    pub fn smaller(delta: &Delta) -> Self {
        if delta.a.ncols() <= delta.a.nrows() { Join::Up } else { Join::Down }
    }
}

impl Delta {
    /// ρ of the LoRA joined so.
    pub fn rank(&self, join: Join) -> usize {
        self.b.ncols()
            * match join {
                Join::Up => self.a.ncols(),
                Join::Down => self.a.nrows(),
            }
    }

    /// The LoRA equal to this layer: exact but for the rounding of a product of two numbers.
    pub fn lora(&self, join: Join) -> Lora {
        let Self { scale, a, b, c } = self;
        let (up, down) = match join {
            Join::Up => (kron(a, b), kron(&Array2::eye(a.ncols()), c)),
            Join::Down => (kron(&Array2::eye(a.nrows()), b), kron(a, c)),
        };
        Lora { scale: *scale, up, down }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{deltas, materialised};
    use super::*;

    #[test]
    fn both_are_the_layer_and_the_smaller_is_smaller() {
        for delta in deltas() {
            let full = materialised(&delta);
            let ranks = [Join::Up, Join::Down].map(|join| {
                let lora = delta.lora(join);
                let more = lora.clone().padded(lora.up.ncols() + 3);
                assert_eq!(more.up.ncols(), lora.up.ncols() + 3);
                let apart = more.up.dot(&more.down) - lora.up.dot(&lora.down);
                assert!(apart.iter().all(|v| v.abs() < 1e-13));
                let apart = lora.up.dot(&lora.down) * lora.scale - &full;
                assert!(apart.iter().all(|v| v.abs() < 1e-12), "{join:?}");
                lora.up.ncols()
            });
            assert_eq!([Join::Up, Join::Down].map(|join| delta.rank(join)), ranks);
            assert_eq!(delta.rank(Join::smaller(&delta)), ranks[0].min(ranks[1]));
        }
    }
}
