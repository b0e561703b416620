//! The inner factor of a layer, B·C or M, in float64.

use kron_core::{Inner, KronShape, Theta};
use ndarray::Array2;

use super::products::{dot, dot32, product_dot, widened};
use super::svd::core;
use crate::limits::Cost;

/// The inner factor of one layer.
pub enum Factor<'a> {
    /// B, b_out × r, and C, r × c_in.
    Product(Array2<f64>, Array2<f64>),
    /// M, b_out × c_in, row-major.
    Full(FactorShape, &'a [f32]),
}

/// Sizes of an inner factor.
#[derive(Clone, Copy, Debug)]
pub struct FactorShape {
    rows: usize,
    columns: usize,
    /// `None` where the factor is full.
    rank: Option<usize>,
}

impl<'a> Factor<'a> {
    /// Takes the inner factor of a layer.
    pub fn new(theta: &'a Theta) -> Self {
        let shape = FactorShape::of(theta.shape());
        let FactorShape { rows, columns, rank } = shape;
        match rank {
            Some(rank) => Factor::Product(widened(rows, rank, theta.b()), widened(rank, columns, theta.c())),
            None => Factor::Full(shape, theta.c()),
        }
    }

    fn shape(&self) -> FactorShape {
        match self {
            Factor::Product(b, c) => {
                FactorShape { rows: b.nrows(), columns: c.ncols(), rank: Some(b.ncols()) }
            }
            Factor::Full(shape, _) => *shape,
        }
    }

    /// Returns two matrices of this product; M is M·I or I·M, with the smaller unit matrix.
    pub fn pair(self) -> (Array2<f64>, Array2<f64>) {
        let FactorShape { rows, columns, .. } = self.shape();
        match self {
            Factor::Product(b, c) => (b, c),
            Factor::Full(_, m) if columns <= rows => (widened(rows, columns, m), Array2::eye(columns)),
            Factor::Full(_, m) => (Array2::eye(rows), widened(rows, columns, m)),
        }
    }

    /// Returns a matrix with the same singular values but zeros, [`FactorShape::core`].
    pub fn core(self) -> Array2<f64> {
        match self {
            Factor::Product(b, c) => core(b, c),
            Factor::Full(FactorShape { rows, columns, .. }, m) => widened(rows, columns, m),
        }
    }

    /// Returns the whole factor, b_out × c_in.
    fn whole(&self) -> Array2<f64> {
        match self {
            Factor::Product(b, c) => b.dot(c),
            Factor::Full(FactorShape { rows, columns, .. }, m) => widened(*rows, *columns, m),
        }
    }

    /// Returns ⟨F, F'⟩ of two factors of equal sizes.
    pub fn dot(&self, other: &Self) -> f64 {
        match (self, other) {
            (Factor::Full(_, ours), Factor::Full(_, theirs)) => dot32(ours, theirs),
            (Factor::Product(b, c), Factor::Product(b2, c2)) if self.shape().is_thin(&other.shape()) => {
                product_dot(b, c, b2, c2)
            }
            _ => dot(self.whole().view(), other.whole().view()),
        }
    }
}

impl FactorShape {
    /// Returns the sizes of a layer's inner factor.
    pub const fn of(shape: &KronShape) -> Self {
        let rank = match shape.inner() {
            Inner::LowRank(rank) => Some(rank),
            Inner::Full => None,
        };
        Self { rows: shape.b_out(), columns: shape.c_in(), rank }
    }

    /// Numbers of B and C, or of M.
    pub const fn elements(&self) -> u128 {
        let (rows, columns) = (self.rows as u128, self.columns as u128);
        match self.rank {
            Some(rank) => rank as u128 * (rows + columns),
            None => rows * columns,
        }
    }

    /// Returns rows and columns of [`Factor::core`].
    pub fn core(&self) -> (usize, usize) {
        let most = self.rank.unwrap_or(usize::MAX);
        (self.rows.min(most), self.columns.min(most))
    }

    /// Returns the multiply-adds of [`Factor::core`].
    pub fn core_work(&self) -> u128 {
        let Some(rank) = self.rank else { return 0 };
        let (m, k, n) = (self.rows as u128, rank as u128, self.columns as u128);
        let reflections = |side: u128| if k < side { 2 * k * k * side } else { 0 };
        reflections(m) + reflections(n) + m.min(k) * k * n.min(k)
    }

    /// Returns multiply-adds of [`Factor::whole`].
    fn whole_work(&self) -> u128 {
        self.rows as u128 * self.columns as u128 * self.rank.map_or(1, |rank| rank as u128)
    }

    /// Multiply-adds of ⟨BᵀB', C·C'ᵀ⟩, and the numbers in both.
    fn gram(&self, other: &Self) -> (u128, u128) {
        let [ours, theirs] = [self, other].map(|shape| shape.rank.unwrap_or(0) as u128);
        let sides = self.rows as u128 + self.columns as u128;
        ((ours * theirs).saturating_mul(sides), 2 * ours * theirs)
    }

    /// Returns true if the products with each other are cheaper than both products.
    fn is_thin(&self, other: &Self) -> bool {
        self.gram(other).0 <= self.whole_work() + other.whole_work()
    }

    /// Returns the cost of [`Factor::dot`], its multiply-adds counted singly.
    pub fn dot_cost(&self, other: &Self) -> Cost {
        let whole = self.rows as u128 * self.columns as u128;
        let widened = self.elements() + other.elements();
        match (self.rank, other.rank) {
            (None, None) => Cost { bytes: 0, work: whole },
            (Some(_), Some(_)) if self.is_thin(other) => {
                let (work, numbers) = self.gram(other);
                Cost { bytes: 8 * (widened + numbers), work }
            }
            _ => Cost { bytes: 8 * (widened + 2 * whole), work: self.whole_work() + other.whole_work() },
        }
    }
}
