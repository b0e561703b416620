//! A layer as the equal LoRA in float32, without a copy in float64.

use kron_core::{Inner, Theta};

use crate::algebra::Join;
use crate::matrix::Matrix;

/// A matrix of a layer: numbers, or the unit matrix.
#[derive(Clone, Copy)]
struct View<'a> {
    rows: usize,
    cols: usize,
    /// Row-major; `None` for the unit matrix.
    data: Option<&'a [f32]>,
}

/// Returns up, d_out × `rank`, and down, `rank` × d_in, padded with zeros. Each element is one product of two
/// values, rounded once; in up it is multiplied by `ratio` before.
pub fn joined(theta: &Theta, join: Join, rank: usize, ratio: f64) -> [Matrix; 2] {
    let shape = theta.shape();
    let (d_out, d_in, b_out, c_in) = (shape.d_out(), shape.d_in(), shape.b_out(), shape.c_in());
    let a = View { rows: shape.a_out(), cols: shape.a_in(), data: Some(theta.a()) };
    let view = |rows, cols, data| View { rows, cols, data: Some(data) };
    let (b, c) = match shape.inner() {
        Inner::LowRank(r) => (view(b_out, r, theta.b()), view(r, c_in, theta.c())),
        Inner::Full if c_in <= b_out => (view(b_out, c_in, theta.c()), View::unit(c_in)),
        Inner::Full => (View::unit(b_out), view(b_out, c_in, theta.c())),
    };
    let (left, right) = match join {
        Join::Up => (a, View::unit(a.cols)),
        Join::Down => (View::unit(a.rows), a),
    };
    [left.kron(b, (d_out, rank), ratio), right.kron(c, (rank, d_in), 1.0)]
}

impl View<'_> {
    const fn unit(size: usize) -> Self {
        Self { rows: size, cols: size, data: None }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        match self.data {
            Some(data) => data[row * self.cols + col].into(),
            None => f64::from(u8::from(row == col)),
        }
    }

    /// Returns self ⊗ inner, multiplied by `ratio`, at the start of a matrix of this size.
    fn kron(self, inner: View, (rows, cols): (usize, usize), ratio: f64) -> Matrix {
        let mut data = vec![0.0; rows * cols];
        for (i, j) in (0..self.rows).flat_map(|i| (0..self.cols).map(move |j| (i, j))) {
            // The blocks beside the unit matrix's diagonal are zero already.
            if self.data.is_none() && i != j {
                continue;
            }
            let outer = self.at(i, j);
            for p in 0..inner.rows {
                let row = &mut data[(i * inner.rows + p) * cols + j * inner.cols..][..inner.cols];
                for (q, to) in row.iter_mut().enumerate() {
                    *to = (outer * inner.at(p, q) * ratio) as f32;
                }
            }
        }
        Matrix { rows, cols, data }
    }
}

#[cfg(test)]
mod tests {
    use kron_core::{KronShape, LayerDims, Outer, Split};

    use super::*;
    use crate::algebra::Delta;

    #[test]
    fn each_element_is_the_rounded_one_of_float64() {
        let dims = LayerDims { d_out: 30, d_in: 42 };
        for inner in [Inner::LowRank(3), Inner::Full] {
            for (a_out, a_in) in [(5, 2), (2, 7), (1, 1), (30, 42)] {
                let outer = if a_out == 1 { Outer::One } else { Outer::Trained };
                let shape = KronShape::new(dims, Split { a_out, a_in }, outer, inner).expect("legal");
                let theta = Theta::random(shape, 3);
                for join in [Join::Up, Join::Down] {
                    let lora = Delta::of(1.0, &theta).lora(join);
                    let rank = join.rank(&shape) + 2;
                    for ratio in [1.0, 0.3] {
                        let [up, down] = joined(&theta, join, rank, ratio);
                        assert_eq!((up.rows, up.cols, down.rows, down.cols), (30, rank, rank, 42));
                        let at = |w: &ndarray::Array2<f64>, i, j| w.get((i, j)).copied().unwrap_or(0.0);
                        for (at_index, got) in up.data.iter().enumerate() {
                            let want = at(&lora.up, at_index / rank, at_index % rank) * ratio;
                            assert_eq!(*got, want as f32, "{shape}");
                        }
                        for (at_index, got) in down.data.iter().enumerate() {
                            assert_eq!(*got, at(&lora.down, at_index / 42, at_index % 42) as f32, "{shape}");
                        }
                    }
                }
            }
        }
    }
}
