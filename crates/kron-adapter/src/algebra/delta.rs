//! ΔW of one layer, and its analysis in closed form.

use kron_core::{Inner, KronShape, Theta};
use ndarray::{Array2, linalg::kron};

use super::lora::{Join, Lora};
use super::products::{dot, product_dot, widened};
use super::svd::core;
use super::values::{values_within, values_work};
use crate::{Error, Layer, Result, ScaleRule, Scaling};

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

/// Cost of [`Delta::inner`] for two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerCost {
    /// Bytes of the two LoRAs, if the layers are split differently.
    pub bytes: u128,
    /// Multiply-adds.
    pub work: u128,
}

impl InnerCost {
    /// Returns the cost for layers of these shapes.
    pub fn new(x: &KronShape, y: &KronShape) -> Self {
        let [rank, other] = match (x.a_out(), x.a_in()) == (y.a_out(), y.a_in()) {
            true => [x, y].map(|shape| Join::inner_rank(shape) as u128),
            false => [x, y].map(|shape| Join::smaller(shape).rank(shape) as u128),
        };
        if (x.a_out(), x.a_in()) == (y.a_out(), y.a_in()) {
            let work = rank * other * (x.b_out() as u128 + x.c_in() as u128);
            return Self { bytes: 0, work: work + x.a_out() as u128 * x.a_in() as u128 };
        }
        let sides = x.d_out() as u128 + x.d_in() as u128;
        Self { bytes: 8 * (rank + other) * sides, work: rank * other * sides }
    }
}

/// Returns s in float64: alpha / r or alpha / √r, rounded once.
pub fn scale64(scaling: Scaling) -> f64 {
    let (alpha, rank) = (f64::from(scaling.alpha()), scaling.rank() as f64);
    match scaling.rule() {
        ScaleRule::AlphaOverR => alpha / rank,
        ScaleRule::AlphaOverSqrtR => alpha / rank.sqrt(),
    }
}

/// Returns exp of the entropy of σ / Σσ (Roy and Vetterli 2007): between 1 and the
/// number of values, 0 if all are 0.
///
/// ```
/// assert_eq!(kron_adapter::algebra::effective_rank(&[2.0, 2.0, 0.0]).round(), 2.0);
/// ```
pub fn effective_rank(singular: &[f64]) -> f64 {
    let sum: f64 = singular.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let shares = singular.iter().map(|s| s / sum).filter(|p| *p > 0.0);
    shares.map(|p| -p * p.ln()).sum::<f64>().exp()
}

/// Returns the multiply-adds of [`core`], of matrices of m × k and k × n.
fn core_work((m, k): (usize, usize), (_, n): (usize, usize)) -> u128 {
    let (m, k, n) = (m as u128, k as u128, n as u128);
    let reflections = |side: u128| if k < side { 2 * k * k * side } else { 0 };
    reflections(m) + reflections(n) + m.min(k) * k * n.min(k)
}

impl Delta {
    /// Takes the factors of a layer.
    pub fn new(layer: &Layer) -> Self {
        Self::of(scale64(layer.scaling()), layer.theta())
    }

    /// Takes s and the factors of s·A ⊗ (B·C).
    ///
    /// A full inner factor M is M·I or I·M, with the smaller unit matrix.
    pub fn of(scale: f64, theta: &Theta) -> Self {
        let shape = theta.shape();
        let (b_out, c_in) = (shape.b_out(), shape.c_in());
        let a = widened(shape.a_out(), shape.a_in(), theta.a());
        let (b, c) = match shape.inner() {
            Inner::LowRank(r) => (widened(b_out, r, theta.b()), widened(r, c_in, theta.c())),
            Inner::Full if c_in <= b_out => (widened(b_out, c_in, theta.c()), Array2::eye(c_in)),
            Inner::Full => (Array2::eye(b_out), widened(b_out, c_in, theta.c())),
        };
        Self { scale, a, b, c }
    }

    /// Returns d_out and d_in.
    pub fn dim(&self) -> (usize, usize) {
        (self.a.nrows() * self.b.nrows(), self.a.ncols() * self.c.ncols())
    }

    /// Returns the side of the product for which the equal LoRA has the smaller rank;
    /// [`Join::Up`] of two equal ranks.
    pub fn smaller_join(&self) -> Join {
        if self.a.ncols() <= self.a.nrows() { Join::Up } else { Join::Down }
    }

    /// Returns ρ, the rank of the equal LoRA.
    pub fn rank(&self, join: Join) -> usize {
        self.b.ncols()
            * match join {
                Join::Up => self.a.ncols(),
                Join::Down => self.a.nrows(),
            }
    }

    /// Returns the equal LoRA: exact but for one rounding of each product of two values.
    pub fn lora(&self, join: Join) -> Lora {
        let Self { scale, a, b, c } = self;
        let (up, down) = match join {
            Join::Up => (kron(a, b), kron(&Array2::eye(a.ncols()), c)),
            Join::Down => (kron(&Array2::eye(a.nrows()), b), kron(a, c)),
        };
        Lora { scale: *scale, up, down }
    }

    /// Returns the singular values in descending order. Values that are zero by construction, or whose squares
    /// are float32's rounding of the others' in a factor, are left out.
    pub fn singular_values(&self) -> Vec<f64> {
        self.singular_values_within(u128::MAX).unwrap_or_default()
    }

    /// Returns [`Delta::singular_values`], or `None` if they take more than `work` multiply-adds.
    pub fn singular_values_within(&self, work: u128) -> Option<Vec<f64>> {
        let left = work.checked_sub(core_work(self.b.dim(), self.c.dim()))?;
        let core = core(&self.b, &self.c);
        let inner = values_within(&core, left)?;
        let outer = values_within(&self.a, left.saturating_sub(values_work(core.nrows(), core.ncols())))?;
        let products = outer.iter().flat_map(|o| inner.iter().map(move |i| o * i * self.scale.abs()));
        let mut values: Vec<f64> = products.collect();
        values.sort_by(|x, y| y.total_cmp(x));
        Some(values)
    }

    /// Returns multiply-adds that suffice for the singular values of a layer of this shape. Where A or M
    /// is of low rank, far fewer do.
    pub fn singular_work(shape: &KronShape) -> u128 {
        let (b_out, c_in) = (shape.b_out(), shape.c_in());
        let rank = Join::inner_rank(shape);
        core_work((b_out, rank), (rank, c_in))
            + values_work(b_out.min(rank), c_in.min(rank))
            + values_work(shape.a_out(), shape.a_in())
    }

    /// Returns ‖ΔW‖, the root of the sum of squares.
    pub fn norm(&self) -> f64 {
        self.scale.abs()
            * dot(self.a.view(), self.a.view()).sqrt()
            * product_dot(&self.b, &self.c, &self.b, &self.c).max(0.0).sqrt()
    }

    /// Returns ⟨ΔW, ΔW'⟩, the sum of the elementwise product.
    ///
    /// # Errors
    /// Fails on layers of different sizes.
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
        let (ours, theirs) = (self.lora(self.smaller_join()), other.lora(other.smaller_join()));
        Ok(ours.scale * theirs.scale * product_dot(&ours.up, &ours.down, &theirs.up, &theirs.down))
    }

    /// Returns ‖ΔW − ΔW'‖ / ‖ΔW‖ from the three inner products. They cancel, so a
    /// value below about 1e-8 is noise. Two zeros differ by 0, and any other from zero by ∞.
    ///
    /// # Errors
    /// Fails on layers of different sizes.
    pub fn relative_distance(&self, other: &Self) -> Result<f64> {
        let (ours, theirs) = (self.norm(), other.norm());
        let square = ours * ours + theirs * theirs - 2.0 * self.inner(other)?;
        let distance = square.max(0.0).sqrt();
        Ok(if distance == 0.0 { 0.0 } else { distance / ours })
    }
}

#[cfg(test)]
mod tests {
    use kron_core::{LayerDims, Outer, Split};

    use super::super::svd;
    use super::*;

    /// Returns ΔW, element by element.
    fn materialised(delta: &Delta) -> Array2<f64> {
        let inner = delta.b.dot(&delta.c);
        let (b_out, c_in) = inner.dim();
        Array2::from_shape_fn(delta.dim(), |(o, i)| {
            delta.scale * delta.a[(o / b_out, i / c_in)] * inner[(o % b_out, i % c_in)]
        })
    }

    /// Returns layers of pairwise different sizes: either side longer, full inner factors, LoRA.
    fn deltas() -> Vec<Delta> {
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
                let difference = &full - &materialised(&y);
                let want = dot(difference.view(), difference.view()).sqrt() / x.norm();
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

    #[test]
    fn both_loras_are_the_layer_and_the_smaller_is_smaller() {
        for delta in deltas() {
            let full = materialised(&delta);
            let ranks = [Join::Up, Join::Down].map(|join| {
                let lora = delta.lora(join);
                let more = lora.clone().padded(lora.up.ncols() + 3);
                assert_eq!(more.up.ncols(), lora.up.ncols() + 3);
                let difference = more.up.dot(&more.down) - lora.up.dot(&lora.down);
                assert!(difference.iter().all(|v| v.abs() < 1e-13));
                let difference = lora.up.dot(&lora.down) * lora.scale - &full;
                assert!(difference.iter().all(|v| v.abs() < 1e-12), "{join:?}");
                lora.up.ncols()
            });
            assert_eq!([Join::Up, Join::Down].map(|join| delta.rank(join)), ranks);
            assert_eq!(delta.rank(delta.smaller_join()), ranks[0].min(ranks[1]));
        }
    }
}
