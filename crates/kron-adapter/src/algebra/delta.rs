//! ΔW of one layer, and its analysis in closed form.

use kron_core::{KronShape, Theta};
use ndarray::{Array2, linalg::kron};

use super::factor::{Factor, FactorShape};
use super::lora::{Join, Lora};
use super::products::{dot32, product_dot, widened};
use super::rows::{rows_dot, rows_work};
use super::values::{values_within, values_work};
use crate::limits::{Cost, product};
use crate::{Error, Layer, Result, ScaleRule, Scaling};

/// Most bytes of two LoRAs whose inner product is computed from them.
const LORAS: u128 = 16 << 20;

/// ΔW = s·A ⊗ (B·C) of one layer: a view of its factors, which are widened to float64 where they are used.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    scale: f64,
    theta: &'a Theta,
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

impl<'a> Delta<'a> {
    /// Takes the factors of a layer.
    pub fn new(layer: &'a Layer) -> Self {
        Self::of(scale64(layer.scaling()), layer.theta())
    }

    /// Takes s and the factors of s·A ⊗ (B·C).
    pub const fn of(scale: f64, theta: &'a Theta) -> Self {
        Self { scale, theta }
    }

    const fn shape(&self) -> &KronShape {
        self.theta.shape()
    }

    /// Returns A, a_out × a_in.
    fn outer(&self) -> Array2<f64> {
        widened(self.shape().a_out(), self.shape().a_in(), self.theta.a())
    }

    /// Returns d_out and d_in.
    pub fn dim(&self) -> (usize, usize) {
        (self.shape().d_out(), self.shape().d_in())
    }

    /// Returns the side of the product for which the equal LoRA has the smaller rank;
    /// [`Join::Up`] of two equal ranks.
    pub fn smaller_join(&self) -> Join {
        Join::smaller(self.shape())
    }

    /// Returns ρ, the rank of the equal LoRA.
    pub fn rank(&self, join: Join) -> usize {
        join.rank(self.shape())
    }

    /// Returns the equal LoRA: exact but for one rounding of each product of two values.
    pub fn lora(&self, join: Join) -> Lora {
        let (a, (b, c)) = (self.outer(), Factor::new(self.theta).pair());
        let (up, down) = match join {
            Join::Up => (kron(&a, &b), kron(&Array2::eye(a.ncols()), &c)),
            Join::Down => (kron(&Array2::eye(a.nrows()), &b), kron(&a, &c)),
        };
        Lora { scale: self.scale, up, down }
    }

    /// Returns the singular values in descending order. Values that are zero by construction, or whose squares
    /// are float32's rounding of the others' in a factor, are left out.
    pub fn singular_values(&self) -> Vec<f64> {
        self.singular_values_within(u128::MAX).unwrap_or_default()
    }

    /// Returns [`Delta::singular_values`], or `None` if they take more than `work` multiply-adds.
    pub fn singular_values_within(&self, work: u128) -> Option<Vec<f64>> {
        let shape = FactorShape::of(self.shape());
        let left = work.checked_sub(shape.core_work())?;
        let inner = values_within(Factor::new(self.theta).core(), left)?;
        let (rows, columns) = shape.core();
        let outer = values_within(self.outer(), left.saturating_sub(values_work(rows, columns)))?;
        let products = outer.iter().flat_map(|o| inner.iter().map(move |i| o * i * self.scale.abs()));
        let mut values: Vec<f64> = products.collect();
        values.sort_by(|x, y| y.total_cmp(x));
        Some(values)
    }

    /// Returns a cost that suffices for the singular values of a layer of this shape. Where A or M
    /// is of low rank, far less work does.
    pub fn singular_cost(shape: &KronShape) -> Cost {
        let (inner, (rows, columns)) = (FactorShape::of(shape), FactorShape::of(shape).core());
        let outer = shape.a_out() as u128 * shape.a_in() as u128;
        let count = shape.max_rank() as u128;
        Cost {
            bytes: 8 * (outer.max(2 * inner.elements() + rows as u128 * columns as u128) + 2 * count),
            work: inner.core_work() + values_work(rows, columns) + values_work(shape.a_out(), shape.a_in()),
        }
    }

    /// Returns ‖ΔW‖, the root of the sum of squares.
    pub fn norm(&self) -> f64 {
        let inner = Factor::new(self.theta);
        self.scale.abs() * dot32(self.theta.a(), self.theta.a()).sqrt() * inner.dot(&inner).max(0.0).sqrt()
    }

    /// Returns the cost of [`Delta::norm`] of a layer of this shape.
    pub fn norm_cost(shape: &KronShape) -> Cost {
        Self::inner_cost(shape, shape)
    }

    /// Returns ⟨ΔW, ΔW'⟩, the sum of the elementwise product.
    ///
    /// # Errors
    /// Fails on layers of different sizes.
    pub fn inner(&self, other: &Delta) -> Result<f64> {
        if self.dim() != other.dim() {
            let ((a, b), (c, d)) = (self.dim(), other.dim());
            return Err(Error::data(format!(
                "layers of {a} × {b} and {c} × {d} have no inner product: they are of one size"
            )));
        }
        let scale = self.scale * other.scale;
        Ok(scale
            * match Way::of(self.shape(), other.shape()) {
                Way::Factors => {
                    let inner = Factor::new(self.theta).dot(&Factor::new(other.theta));
                    dot32(self.theta.a(), other.theta.a()) * inner
                }
                Way::Loras => {
                    let (ours, theirs) = (self.lora(self.smaller_join()), other.lora(other.smaller_join()));
                    product_dot(&ours.up, &ours.down, &theirs.up, &theirs.down)
                }
                Way::Rows => rows_dot(self.theta, other.theta),
            })
    }

    /// Returns the cost of [`Delta::inner`] for layers of these shapes.
    pub fn inner_cost(x: &KronShape, y: &KronShape) -> Cost {
        let outer = x.a_out() as u128 * x.a_in() as u128;
        match Way::of(x, y) {
            Way::Factors => {
                let inner = FactorShape::of(x).dot_cost(&FactorShape::of(y));
                Cost { bytes: inner.bytes, work: product(inner.work.saturating_add(outer)) }
            }
            Way::Loras => loras_cost(x, y),
            Way::Rows => {
                let elements = FactorShape::of(x).elements() + FactorShape::of(y).elements();
                let bytes = 8 * (elements + x.c_in() as u128 + y.c_in() as u128);
                Cost { bytes, work: product(rows_work(x, y)) }
            }
        }
    }

    /// Returns ‖ΔW − ΔW'‖ / ‖ΔW‖ from the three inner products. They cancel, so a
    /// value below about 1e-8 is noise. Two zeros differ by 0, and any other from zero by ∞.
    ///
    /// # Errors
    /// Fails on layers of different sizes.
    pub fn relative_distance(&self, other: &Delta) -> Result<f64> {
        let (ours, theirs) = (self.norm(), other.norm());
        let square = ours * ours + theirs * theirs - 2.0 * self.inner(other)?;
        let distance = square.max(0.0).sqrt();
        Ok(if distance == 0.0 { 0.0 } else { distance / ours })
    }
}

/// Ways to an inner product.
#[derive(Clone, Copy)]
enum Way {
    /// ⟨A, A'⟩·⟨B·C, B'·C'⟩, for equal splits.
    Factors,
    /// From both equal LoRAs, where they are small.
    Loras,
    /// Row by row.
    Rows,
}

impl Way {
    /// Returns the cheapest way for layers of these shapes.
    fn of(x: &KronShape, y: &KronShape) -> Self {
        if (x.a_out(), x.a_in()) == (y.a_out(), y.a_in()) {
            return Way::Factors;
        }
        let loras = loras_cost(x, y);
        if loras.bytes <= LORAS && loras.work <= product(rows_work(x, y)) { Way::Loras } else { Way::Rows }
    }
}

/// Returns the cost of an inner product from both equal LoRAs.
fn loras_cost(x: &KronShape, y: &KronShape) -> Cost {
    let [ours, theirs] = [x, y].map(|shape| Join::smaller(shape).rank(shape) as u128);
    let sides = x.d_out() as u128 + x.d_in() as u128;
    let bytes =
        8 * ((ours + theirs).saturating_mul(sides)).saturating_add(16u128.saturating_mul(ours * theirs));
    Cost { bytes, work: product((ours * theirs).saturating_mul(sides)) }
}

#[cfg(test)]
mod tests {
    use kron_core::{Inner, LayerDims, Outer, Split};

    use super::super::products::dot;
    use super::super::svd;
    use super::*;

    /// Returns ΔW, element by element.
    fn materialised(delta: &Delta) -> Array2<f64> {
        let ((b, c), a) = (Factor::new(delta.theta).pair(), delta.outer());
        let inner = b.dot(&c);
        let (b_out, c_in) = inner.dim();
        Array2::from_shape_fn(delta.dim(), |(o, i)| {
            delta.scale * a[(o / b_out, i / c_in)] * inner[(o % b_out, i % c_in)]
        })
    }

    /// Returns layers of pairwise different sizes: either side longer, full inner factors, LoRA.
    fn thetas() -> Vec<Theta> {
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
            // A rank above both sides of the inner factor, and one between them.
            KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 20, a_in: 14 }, 9),
            KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 20, a_in: 2 }, 5),
        ];
        shapes.into_iter().zip(1..).map(|(shape, seed)| Theta::random(shape.unwrap(), seed)).collect()
    }

    fn deltas(thetas: &[Theta]) -> Vec<Delta<'_>> {
        thetas.iter().zip(1..).map(|(theta, seed)| Delta::of(0.75 - f64::from(seed), theta)).collect()
    }

    fn near(got: f64, want: f64, size: f64) {
        assert!((got - want).abs() <= 1e-12 * size, "{got} and {want}");
    }

    #[test]
    fn norm_and_inner_products_are_those_of_the_materialised_matrices() {
        let thetas = thetas();
        for x in deltas(&thetas) {
            let full = materialised(&x);
            assert!(full.iter().any(|v| v.abs() > 1e-3));
            near(x.norm(), dot(full.view(), full.view()).sqrt(), x.norm());
            for y in deltas(&thetas) {
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
        for x in deltas(&thetas()) {
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
        let other = Theta::random(KronShape::lora(LayerDims { d_out: 60, d_in: 40 }, 2).unwrap(), 1);
        let message = deltas(&thetas())[0].inner(&Delta::of(1.0, &other)).unwrap_err().to_string();
        assert!(message.contains("60 × 42 and 60 × 40"), "{message}");
    }

    #[test]
    fn both_loras_are_the_layer_and_the_smaller_is_smaller() {
        for delta in deltas(&thetas()) {
            let full = materialised(&delta);
            let ranks = [Join::Up, Join::Down].map(|join| {
                let lora = delta.lora(join);
                let difference = lora.up.dot(&lora.down) * lora.scale - &full;
                assert!(difference.iter().all(|v| v.abs() < 1e-12), "{join:?}");
                lora.up.ncols()
            });
            assert_eq!([Join::Up, Join::Down].map(|join| delta.rank(join)), ranks);
            assert_eq!(delta.rank(delta.smaller_join()), ranks[0].min(ranks[1]));
        }
    }
}
