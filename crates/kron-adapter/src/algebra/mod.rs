//! What ΔW is like, without ΔW: closed forms in float64 on the factors.
//!
//! ```text
//! sv(ΔW) = s·(sv(A) × sv(B·C))           ‖ΔW‖ = s·‖A‖·‖B·C‖
//! ⟨ΔW, ΔW'⟩ = s·s'·⟨A, A'⟩·⟨BᵀB', C·C'ᵀ⟩     for equal splits
//! A ⊗ (B·C) = (A ⊗ B)·(I ⊗ C) = (I ⊗ B)·(A ⊗ C)
//! ```
//!
//! The largest array is d_out × ρ or ρ × d_in with ρ the rank of an equal LoRA.

mod fit;
mod lora;
mod svd;

use ndarray::{Array2, ArrayView2, Zip};

pub use fit::{MAX_OUTER, fit};
pub use lora::{Join, Lora};
use svd::values_of_product;
pub use svd::{Svd, svd, svd_of_product};

use crate::{Error, Layer, Result, ScaleRule, Scaling};
use kron_core::{Inner, Theta};

/// ΔW = s·A ⊗ (B·C) of one layer in float64.
#[derive(Clone, Debug)]
pub struct Delta {
    scale: f64,
    /// a_out × a_in.
    a: Array2<f64>,
    /// b_out × k.
    b: Array2<f64>,
    /// k × c_in.
    c: Array2<f64>,
}

/// s in float64: alpha / r or alpha / √r, rounded once.
pub fn scale64(scaling: Scaling) -> f64 {
    let (alpha, rank) = (f64::from(scaling.alpha()), scaling.rank() as f64);
    match scaling.rule() {
        ScaleRule::AlphaOverR => alpha / rank,
        ScaleRule::AlphaOverSqrtR => alpha / rank.sqrt(),
    }
}

/// exp of the entropy of σ / Σσ (Roy and Vetterli 2007): between 1 and the
/// number of values, 0 when all are 0.
pub fn effective_rank(singular: &[f64]) -> f64 {
    let sum: f64 = singular.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let shares = singular.iter().map(|s| s / sum).filter(|p| *p > 0.0);
    shares.map(|p| -p * p.ln()).sum::<f64>().exp()
}

impl Delta {
    /// ΔW of a layer.
    pub fn new(layer: &Layer) -> Self {
        Self::of(scale64(layer.scaling()), layer.theta())
    }

    /// s·A ⊗ (B·C) of these factors.
    ///
    /// A full inner factor M is M·I or I·M, with the smaller unit matrix.
    pub fn of(scale: f64, theta: &Theta) -> Self {
        let shape = theta.shape();
        let (b_out, c_in) = (shape.b_out(), shape.c_in());
        let a = wide(shape.a_out(), shape.a_in(), theta.a());
        let (b, c) = match shape.inner() {
            Inner::LowRank(r) => (wide(b_out, r, theta.b()), wide(r, c_in, theta.c())),
            Inner::Full if c_in <= b_out => (wide(b_out, c_in, theta.c()), Array2::eye(c_in)),
            Inner::Full => (Array2::eye(b_out), wide(b_out, c_in, theta.c())),
        };
        Self { scale, a, b, c }
    }

    /// d_out × d_in.
    pub fn dim(&self) -> (usize, usize) {
        (self.a.nrows() * self.b.nrows(), self.a.ncols() * self.c.ncols())
    }

    /// The singular values that are not zero by construction, in descending order.
    pub fn singular_values(&self) -> Vec<f64> {
        let (outer, inner) = (svd(&self.a).s, values_of_product(&self.b, &self.c));
        let products = outer.iter().flat_map(|o| inner.iter().map(move |i| o * i * self.scale.abs()));
        let mut values: Vec<f64> = products.collect();
        values.sort_by(|x, y| y.total_cmp(x));
        values
    }

    /// ‖ΔW‖, the root of the sum of squares.
    pub fn norm(&self) -> f64 {
        self.scale.abs()
            * dot(self.a.view(), self.a.view()).sqrt()
            * product_dot(&self.b, &self.c, &self.b, &self.c).max(0.0).sqrt()
    }

    /// ⟨ΔW, ΔW'⟩, the sum of the elementwise product.
    ///
    /// # Errors
    /// Layers of different sizes.
    pub fn inner(&self, other: &Self) -> Result<f64> {
        if self.dim() != other.dim() {
            let ((a, b), (c, d)) = (self.dim(), other.dim());
            return Err(Error::data(format!(
                "layers of {a} × {b} and {c} × {d} have no inner product: they are of one size"
            )));
        }
        if self.a.dim() == other.a.dim() {
            let outer = dot(self.a.view(), other.a.view());
            return Ok(self.scale * other.scale * outer * product_dot(&self.b, &self.c, &other.b, &other.c));
        }
        let (ours, theirs) = (self.lora(Join::smaller(self)), other.lora(Join::smaller(other)));
        Ok(ours.scale * theirs.scale * product_dot(&ours.up, &ours.down, &theirs.up, &theirs.down))
    }

    /// ‖ΔW − ΔW'‖ / ‖ΔW‖ from the three inner products, which cancel: below
    /// about 1e-8 it is noise. Two zeros differ by 0, and any other from zero by ∞.
    ///
    /// # Errors
    /// Layers of different sizes.
    pub fn relative_distance(&self, other: &Self) -> Result<f64> {
        let (ours, theirs) = (self.norm(), other.norm());
        let square = ours * ours + theirs * theirs - 2.0 * self.inner(other)?;
        let distance = square.max(0.0).sqrt();
        Ok(if distance == 0.0 { 0.0 } else { distance / ours })
    }
}

/// A row-major slice as a float64 matrix; the caller's shape has these sizes.
fn wide(rows: usize, cols: usize, from: &[f32]) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(i, j)| f64::from(from[i * cols + j]))
}

/// ⟨x, y⟩.
fn dot(x: ArrayView2<f64>, y: ArrayView2<f64>) -> f64 {
    Zip::from(x).and(y).fold(0.0, |sum, x, y| sum + x * y)
}

/// ⟨U·V, U'·V'⟩ = ⟨UᵀU', V·V'ᵀ⟩.
fn product_dot(u: &Array2<f64>, v: &Array2<f64>, u2: &Array2<f64>, v2: &Array2<f64>) -> f64 {
    dot(u.t().dot(u2).view(), v.dot(&v2.t()).view())
}

#[cfg(test)]
mod tests {
    use kron_core::{LayerDims, Split};

    use super::*;
    use kron_core::{KronShape, Outer};

    /// ΔW, element by element.
    pub(super) fn materialised(delta: &Delta) -> Array2<f64> {
        let inner = delta.b.dot(&delta.c);
        let (b_out, c_in) = inner.dim();
        Array2::from_shape_fn(delta.dim(), |(o, i)| {
            delta.scale * delta.a[(o / b_out, i / c_in)] * inner[(o % b_out, i % c_in)]
        })
    }

    /// Pairwise different sizes; both sides longer, full inner factors, LoRA.
    pub(super) fn deltas() -> Vec<Delta> {
        let shapes = [
            KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 5, a_in: 3 }, 4),
            KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 2, a_in: 7 }, 3),
            KronShape::krona(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 5, a_in: 6 }),
            KronShape::krona(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 12, a_in: 2 }),
            KronShape::lora(LayerDims { d_out: 60, d_in: 42 }, 5),
            KronShape::new(
                LayerDims { d_out: 60, d_in: 42 },
                Split { a_out: 1, a_in: 1 },
                Outer::One,
                Inner::Full,
            ),
            KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 30, a_in: 21 }, 1),
        ];
        let thetas =
            shapes.into_iter().zip(1..).map(|(shape, seed)| (Theta::random(shape.unwrap(), seed), seed));
        thetas.map(|(theta, seed)| Delta::of(0.75 - seed as f64, &theta)).collect()
    }

    fn near(got: f64, want: f64, size: f64) {
        assert!((got - want).abs() <= 1e-12 * size, "{got} and {want}");
    }

    #[test]
    fn norm_and_inner_products_are_those_of_the_materialised_matrices() {
        for x in deltas() {
            let full = materialised(&x);
            assert!(full.iter().any(|v| v.abs() > 1e-3));
            near(x.norm(), dot(full.view(), full.view()).sqrt(), x.norm());
            for y in deltas() {
                let want = dot(full.view(), materialised(&y).view());
                near(x.inner(&y).unwrap(), want, x.norm() * y.norm());
                let apart = &full - &materialised(&y);
                let want = dot(apart.view(), apart.view()).sqrt() / x.norm();
                let got = x.relative_distance(&y).unwrap();
                assert!((got - want).abs() < 1e-7 * (1.0 + want), "{got} and {want}");
            }
        }
    }

    #[test]
    fn singular_values_are_those_of_the_materialised_matrix() {
        for x in deltas() {
            let (got, want) = (x.singular_values(), svd(&materialised(&x)).s);
            for (i, want) in want.iter().enumerate() {
                near(got.get(i).copied().unwrap_or(0.0), *want, x.norm());
            }
            assert!(got.iter().skip(want.len()).all(|v| *v <= 1e-12 * x.norm()));
        }
    }

    #[test]
    fn effective_rank_counts_equal_values() {
        assert_eq!(effective_rank(&[0.0, 0.0]), 0.0);
        near(effective_rank(&[3.0, 3.0, 3.0, 0.0]), 3.0, 1.0);
        assert!(effective_rank(&[1.0, 1e-9]) < 1.001);
    }

    #[test]
    fn sizes_that_differ_are_refused_with_both() {
        let other =
            Delta::of(1.0, &Theta::random(KronShape::lora(LayerDims { d_out: 60, d_in: 40 }, 2).unwrap(), 1));
        let message = deltas()[0].inner(&other).unwrap_err().to_string();
        assert!(message.contains("60 × 42 and 60 × 40"), "{message}");
    }
}
