//! The nearest A ⊗ (B·C) to a product U·V, which is d_out × ρ times ρ × d_in.
//!
//! Van Loan and Pitsianis (1993): the nearest A ⊗ M is the top singular pair of
//! the matrix with a row for each block of U·V. Block (i, j) is U_i·V_j, so the
//! Gram matrix of the rows is
//!
//! ```text
//! G[(i, j), (k, l)] = ⟨U_iᵀ·U_k, V_j·V_lᵀ⟩       (a_out·a_in)²
//! ```
//!
//! A is its top eigenvector. Then, for an M of rank r, alternate: the best B·C
//! for A is the truncated Σ A_ij·U_i·V_j / ‖A‖², the best A for B·C is
//! A_ij = ⟨U_i·V_j, B·C⟩ / ‖B·C‖². Neither step can make the error larger.

use kron_core::{KronShape, LayerDims, Split, Theta};
use ndarray::{Array1, Array2, ArrayView2, Axis, Slice, concatenate};

use super::lora::Lora;
use super::products::{dot, product_dot};
use super::svd::{svd_of_product, svd_work};
use crate::limits::{Cost, product};
use crate::{Error, Result};

/// Largest a_out·a_in: the fit holds a square matrix of that many rows.
pub const MAX_OUTER: usize = 4096;
/// Number of steps of the power method and of the alternation.
const STEPS: usize = 300;

/// A fitted layer.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Its factors, rounded to float32.
    pub theta: Theta,
    /// False if the work ended before the steps did: more of it could make the error smaller.
    pub converged: bool,
}

/// Fits A ⊗ (B·C) with this split and rank to up·down, ignoring its scale. It alternates until the error
/// stays, for 300 steps, or until `work` multiply-adds are done.
///
/// # Errors
/// Fails if the split does not divide the layer, if a_out·a_in is above
/// [`MAX_OUTER`], if the rank is 0 or above min(b_out, c_in), and if `work` does not suffice for one step.
pub fn fit(lora: &Lora, split: Split, rank: usize, work: u128) -> Result<Fit> {
    let (d_out, d_in) = (lora.up.nrows(), lora.down.ncols());
    let shape = KronShape::kron(LayerDims { d_out, d_in }, split, rank)?;
    let Split { a_out, a_in } = split;
    if a_out.saturating_mul(a_in) > MAX_OUTER {
        return Err(Error::data(format!("a_out·a_in = {} is above the limit of {MAX_OUTER}", a_out * a_in)));
    }
    let max = shape.b_out().min(shape.c_in());
    if rank > max {
        return Err(Error::data(format!("rank {rank} is above min(b_out, c_in) = {max}")));
    }
    let sizes = Sizes::new(&shape, lora.up.ncols());
    let (least, step) = (sizes.start_work() + sizes.step_work(), sizes.step_work());
    let Some(mut work) = work.checked_sub(least) else {
        return Err(Error::data(format!(
            "one step takes {:.1e} multiply-adds, but its file leaves {:.1e} for it",
            least as f64, work as f64
        )));
    };
    let blocks = Blocks { lora, shape };
    let mut a = blocks.start();
    let mut inner = blocks.inner(&a, rank);
    let (mut captured, mut converged) = (0.0, true);
    for _ in 0..STEPS {
        let Some(left) = work.checked_sub(step) else {
            converged = false;
            break;
        };
        work = left;
        a = blocks.outer(&inner);
        inner = blocks.inner(&a, rank);
        let now = dot(a.view(), a.view()) * product_dot(&inner.0, &inner.1, &inner.0, &inner.1);
        if now - captured <= 1e-15 * now {
            break;
        }
        captured = now;
    }
    let values = [&a, &inner.0, &inner.1].map(|f| f.iter().map(|v| *v as f32).collect::<Vec<_>>());
    Ok(Fit { theta: Theta::from_factors(shape, &values[0], &values[1], &values[2])?, converged })
}

impl Fit {
    /// Returns the cost of [`fit`] with this split and rank for a LoRA of this shape; most fits
    /// take far less work.
    pub fn cost(lora: &KronShape, split: Split, rank: usize) -> Cost {
        let layer = LayerDims { d_out: lora.d_out(), d_in: lora.d_in() };
        // A shape that is refused costs nothing.
        let Ok(shape) = KronShape::kron(layer, split, rank) else { return Cost::default() };
        let sizes = Sizes::new(&shape, lora.width());
        let steps = (STEPS as u128 + 1).saturating_mul(sizes.step_work());
        Cost { bytes: sizes.bytes(), work: sizes.start_work().saturating_add(steps) }
    }
}

/// Sizes of a fit, from which its cost follows.
struct Sizes {
    a_out: u128,
    a_in: u128,
    b_out: u128,
    c_in: u128,
    rank: u128,
    /// ρ, the rank of the LoRA.
    lora: u128,
}

impl Sizes {
    fn new(shape: &KronShape, lora: usize) -> Self {
        let [a_out, a_in] = [shape.a_out(), shape.a_in()].map(|n| n as u128);
        let [b_out, c_in] = [shape.b_out(), shape.c_in()].map(|n| n as u128);
        Self { a_out, a_in, b_out, c_in, rank: shape.width() as u128, lora: lora as u128 }
    }

    /// Number of elements of G.
    const fn gram(&self) -> u128 {
        (self.a_out * self.a_in).saturating_pow(2)
    }

    /// Number of columns of the product that an inner step decomposes.
    fn joined(&self) -> u128 {
        self.lora * self.a_out.min(self.a_in)
    }

    /// Multiply-adds of [`Blocks::start`].
    const fn start_work(&self) -> u128 {
        let square = self.lora * self.lora;
        let blocks = self.a_out * self.a_out * self.b_out + self.a_in * self.a_in * self.c_in;
        product(square.saturating_mul(blocks))
            .saturating_add(self.gram().saturating_mul(square.saturating_add(STEPS as u128)))
    }

    /// Multiply-adds of [`Blocks::outer`] and [`Blocks::inner`].
    fn step_work(&self) -> u128 {
        let &Self { a_out, a_in, b_out, c_in, rank, lora } = self;
        let (joined, sides) = (self.joined(), a_out * b_out + a_in * c_in);
        let (first, second) = (b_out.min(joined), b_out.min(joined).min(c_in));
        let sums =
            a_out * a_in * lora * (b_out.max(c_in) + rank) + rank * (lora * sides + rank * (b_out + c_in));
        svd_work(b_out, joined)
            .saturating_add(svd_work(first, c_in))
            .saturating_add(product(sums + first * joined * c_in + b_out * first * second))
            // The alternation and its test each multiply the factors by themselves.
            .saturating_add(product(2 * rank * rank * (b_out + c_in)))
    }

    /// Bytes that are held at one time.
    fn bytes(&self) -> u128 {
        let &Self { a_out, a_in, b_out, c_in, rank, lora } = self;
        let start = (a_out * a_out + a_in * a_in).saturating_mul(lora * lora).saturating_add(self.gram());
        // Both factors of the product, each with three copies while it is decomposed.
        let step = 4 * self.joined() * (b_out + c_in + self.joined());
        // The factors in float64, rounded, and widened again for the error.
        let result = rank * (b_out + c_in) + a_out * a_in;
        8 * (lora * (a_out * b_out + a_in * c_in) + start.max(step) + 3 * result)
    }
}

/// U·V, cut into blocks.
struct Blocks<'a> {
    lora: &'a Lora,
    shape: KronShape,
}

impl Blocks<'_> {
    /// Returns U_i, b_out × ρ.
    fn u(&self, i: usize) -> ArrayView2<'_, f64> {
        let n = self.shape.b_out();
        self.lora.up.slice_axis(Axis(0), Slice::from(i * n..(i + 1) * n))
    }

    /// Returns V_j, ρ × c_in.
    fn v(&self, j: usize) -> ArrayView2<'_, f64> {
        let n = self.shape.c_in();
        self.lora.down.slice_axis(Axis(1), Slice::from(j * n..(j + 1) * n))
    }

    /// Returns the top eigenvector of G, a_out × a_in, by the power method.
    fn start(&self) -> Array2<f64> {
        let (rows, cols) = (self.shape.a_out(), self.shape.a_in());
        let us = Array2::from_shape_fn((rows, rows), |(i, k)| self.u(i).t().dot(&self.u(k)));
        let vs = Array2::from_shape_fn((cols, cols), |(j, l)| self.v(j).dot(&self.v(l).t()));
        let g = Array2::from_shape_fn((rows * cols, rows * cols), |(p, q)| {
            dot(us[(p / cols, q / cols)].view(), vs[(p % cols, q % cols)].view())
        });
        // The block of the largest norm is orthogonal to the answer only by accident.
        let top = (0..rows * cols).max_by(|&p, &q| g[(p, p)].total_cmp(&g[(q, q)])).unwrap_or(0);
        let mut a: Array1<f64> = g.column(top).to_owned();
        for _ in 0..STEPS {
            let norm = a.dot(&a).sqrt();
            if norm == 0.0 {
                a[top] = 1.0;
                break;
            }
            a = g.dot(&(a / norm));
        }
        let norm = a.dot(&a).sqrt();
        Array2::from_shape_fn((rows, cols), |(i, j)| a[i * cols + j] / norm)
    }

    /// Returns the best B and C for A: the truncated Σ A_ij·U_i·V_j / ‖A‖².
    fn inner(&self, a: &Array2<f64>, rank: usize) -> (Array2<f64>, Array2<f64>) {
        let square = dot(a.view(), a.view());
        let sum = |views: Vec<(f64, ArrayView2<f64>)>| {
            let mut total = Array2::zeros(views[0].1.dim());
            views.into_iter().for_each(|(k, view)| total.scaled_add(k, &view));
            total
        };
        let (rows, cols) = a.dim();
        // [U_1 … U_m]·[Σ_j A_1j·V_j; …], or the same from the other side: the shorter.
        let (left, right) = if rows <= cols {
            let rights = (0..rows).map(|i| sum((0..cols).map(|j| (a[(i, j)] / square, self.v(j))).collect()));
            (join(Axis(1), (0..rows).map(|i| self.u(i).to_owned())), join(Axis(0), rights))
        } else {
            let lefts = (0..cols).map(|j| sum((0..rows).map(|i| (a[(i, j)] / square, self.u(i))).collect()));
            (join(Axis(1), lefts), join(Axis(0), (0..cols).map(|j| self.v(j).to_owned())))
        };
        let svd = svd_of_product(&left, &right);
        let found = svd.s.len().min(rank);
        // A rank above that of the sum leaves columns of zeros.
        let mut b = Array2::zeros((left.nrows(), rank));
        let mut c = Array2::zeros((rank, right.ncols()));
        for k in 0..found {
            let root = svd.s[k].sqrt();
            b.column_mut(k).assign(&(&svd.u.column(k) * root));
            c.row_mut(k).assign(&(&svd.v.row(k) * root));
        }
        (b, c)
    }

    /// Returns the best A for B·C, of norm 1; all ones if B·C is zero.
    fn outer(&self, (b, c): &(Array2<f64>, Array2<f64>)) -> Array2<f64> {
        let square = product_dot(b, c, b, c);
        let bus: Vec<_> = (0..self.shape.a_out()).map(|i| b.t().dot(&self.u(i))).collect();
        let cvs: Vec<_> = (0..self.shape.a_in()).map(|j| c.dot(&self.v(j).t())).collect();
        let a = Array2::from_shape_fn((bus.len(), cvs.len()), |(i, j)| dot(bus[i].view(), cvs[j].view()));
        let norm = dot(a.view(), a.view()).sqrt();
        if square == 0.0 || norm == 0.0 {
            // ΔW = 0: any A fits, and the inner factor is zero.
            return Array2::ones(a.dim());
        }
        // A of norm 1: the inner step puts the size into B and C.
        a / norm
    }
}

fn join(axis: Axis, parts: impl Iterator<Item = Array2<f64>>) -> Array2<f64> {
    let parts: Vec<_> = parts.collect();
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    // Blocks of one matrix have one size, so they always join.
    concatenate(axis, &views).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{Delta, Join, svd};
    use super::*;

    fn layer(shape: kron_core::Result<KronShape>, seed: u64) -> Theta {
        Theta::random(shape.unwrap(), seed)
    }

    fn lora(theta: &Theta) -> Lora {
        Delta::of(1.0, theta).lora(Join::Up)
    }

    fn error(target: &Theta, split: Split, rank: usize) -> f64 {
        let Fit { theta, converged } = fit(&lora(target), split, rank, u128::MAX).unwrap();
        assert!(converged);
        Delta::of(1.0, target).relative_distance(&Delta::of(1.0, &theta)).unwrap()
    }

    #[test]
    fn a_kron_layer_is_recovered() {
        for (a_out, a_in, rank) in [(4, 3, 2), (2, 6, 3), (6, 1, 4), (1, 1, 5)] {
            let split = Split { a_out, a_in };
            let target = layer(KronShape::kron(LayerDims { d_out: 48, d_in: 36 }, split, rank), 5);
            let error = error(&target, split, rank);
            assert!(error < 1e-6, "A {a_out}×{a_in} r {rank}: {error}");
        }
    }

    /// Without a limit on the rank the error is that of the rearranged matrix.
    #[test]
    fn error_is_the_rearranged_matrix_s() {
        let target = layer(KronShape::lora(LayerDims { d_out: 24, d_in: 18 }, 3), 7);
        let lora = lora(&target);
        let full = lora.up.dot(&lora.down);
        for (a_out, a_in) in [(2, 3), (4, 2), (3, 1)] {
            let (b_out, c_in) = (24 / a_out, 18 / a_in);
            let rearranged = Array2::from_shape_fn((a_out * a_in, b_out * c_in), |(p, q)| {
                full[(p / a_in * b_out + q / c_in, p % a_in * c_in + q % c_in)]
            });
            let s = svd(&rearranged).s;
            let total: f64 = s.iter().map(|v| v * v).sum();
            let want = (1.0 - s[0] * s[0] / total).sqrt();
            let got = error(&target, Split { a_out, a_in }, b_out.min(c_in));
            assert!((got - want).abs() < 1e-6, "({a_out}, {a_in}): {got} and {want}");
        }
    }

    /// Unstructured deltas are far from any Kronecker product.
    #[test]
    fn a_random_delta_is_not_recovered() {
        let target = layer(KronShape::lora(LayerDims { d_out: 256, d_in: 256 }, 8), 3);
        let errors =
            [(1, 1), (1, 2), (2, 2), (4, 2)].map(|(a_out, a_in)| error(&target, Split { a_out, a_in }, 8));
        assert!(errors[0] < 1e-6 && errors[1] > 0.5 && errors.is_sorted(), "{errors:?}");
    }

    #[test]
    fn zero_stays_zero() {
        let target = Theta::init(KronShape::lora(LayerDims { d_out: 24, d_in: 18 }, 3).unwrap(), 1);
        let Fit { theta, .. } = fit(&lora(&target), Split { a_out: 2, a_in: 3 }, 2, u128::MAX).unwrap();
        assert_eq!(Delta::of(1.0, &theta).norm(), 0.0);
        assert!(theta.as_slice().iter().all(|v| v.is_finite()));
    }

    #[test]
    fn impossible_fits_are_refused_with_the_values() {
        let lora = lora(&layer(KronShape::lora(LayerDims { d_out: 24, d_in: 18 }, 3), 7));
        for ((a_out, a_in, rank), says) in
            [((5, 3, 2), "5 does not divide d_out = 24"), ((2, 3, 9), "rank 9 is above")]
        {
            let message = fit(&lora, Split { a_out, a_in }, rank, u128::MAX).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }

    /// Every amount of work gives a fit or a refusal, and more of it no larger error.
    #[test]
    fn a_fit_ends_with_its_work() {
        let target = layer(KronShape::lora(LayerDims { d_out: 48, d_in: 36 }, 5), 11);
        let (lora, split) = (lora(&target), Split { a_out: 4, a_in: 3 });
        let most = Fit::cost(target.shape(), split, 3).work;
        let least = most
            - STEPS as u128
                * Sizes::new(&KronShape::kron(LayerDims { d_out: 48, d_in: 36 }, split, 3).unwrap(), 5)
                    .step_work();
        let refused = fit(&lora, split, 3, least - 1).unwrap_err().to_string();
        assert!(refused.contains("one step takes"), "{refused}");
        let mut errors = Vec::new();
        for steps in [0, 1, 3, 10, STEPS as u128] {
            let Fit { theta, converged } =
                fit(&lora, split, 3, least + (most - least) / STEPS as u128 * steps).unwrap();
            errors.push(Delta::of(1.0, &target).relative_distance(&Delta::of(1.0, &theta)).unwrap());
            assert_eq!(converged, steps == STEPS as u128, "{steps}");
        }
        assert!(errors.is_sorted_by(|x, y| x >= &(y - 1e-7)) && errors[0] > errors[4], "{errors:?}");
    }
}
