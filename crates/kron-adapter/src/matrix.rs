//! Factors of foreign files as matrices.

use crate::{Error, Result, Tensors, text};

/// A row-major float32 matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    /// Reads a tensor of two dimensions.
    ///
    /// # Errors
    /// Fails on other dimensions, and on a value that is not finite or that float32
    /// does not hold exactly.
    pub fn read(tensors: &Tensors, name: &str) -> Result<Self> {
        let refused = |what: String| Error::data(format!("{}: {} {what}", tensors.path(), text::name(name)));
        let shape = &tensors.info(name)?.shape;
        let &[rows, cols] = &shape[..] else {
            return Err(refused(format!(
                "has {} dimensions, but a factor of a linear layer has 2 dimensions; convolutions are not supported",
                shape.len()
            )));
        };
        if rows == 0 || cols == 0 {
            return Err(refused(format!(
                "is {rows} × {cols}, but every dimension of a factor is at least 1"
            )));
        }
        let data = tensors.finite_f32(name, "a factor")?;
        Ok(Self { rows, cols, data })
    }

    /// Returns the transposed matrix.
    pub fn transposed(&self) -> Self {
        let column = |j: usize| self.data.iter().skip(j).step_by(self.cols).copied();
        let data = (0..self.cols).flat_map(column).collect();
        Self { rows: self.cols, cols: self.rows, data }
    }

    /// Multiply-adds of [`Matrix::product`].
    pub const fn product_work(&self, other: &Self) -> u128 {
        self.rows as u128 * self.cols as u128 * other.cols as u128
    }

    /// Returns self·other, summed in float64 and rounded once; the columns of one are the rows of the other.
    pub fn product(&self, other: &Self) -> Self {
        let (rows, cols) = (self.rows, other.cols);
        let mut data = Vec::with_capacity(rows * cols);
        let mut sums = vec![0.0f64; cols];
        for row in 0..rows {
            sums.fill(0.0);
            for (k, left) in self.data[row * self.cols..][..self.cols].iter().enumerate() {
                let left = f64::from(*left);
                let right = &other.data[k * cols..][..cols];
                sums.iter_mut().zip(right).for_each(|(sum, r)| *sum += left * f64::from(*r));
            }
            data.extend(sums.iter().map(|sum| *sum as f32));
        }
        Self { rows, cols, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_has_every_sum_even_of_no_term() {
        for (rows, inner, cols) in [(3, 2, 5), (1, 7, 1), (2, 0, 3), (0, 2, 3), (2, 3, 0), (0, 0, 0)] {
            let numbers = |len: usize| (0..len).map(|i| (i * 7 % 5) as f32 - 1.5).collect::<Vec<_>>();
            let left = Matrix { rows, cols: inner, data: numbers(rows * inner) };
            let right = Matrix { rows: inner, cols, data: numbers(inner * cols) };
            let product = left.product(&right);
            assert_eq!(product.data.len(), rows * cols);
            for (at, got) in product.data.iter().enumerate() {
                let (row, col) = (at / cols, at % cols);
                let want: f32 =
                    (0..inner).map(|k| left.data[row * inner + k] * right.data[k * cols + col]).sum();
                assert_eq!(*got, want, "{rows} {inner} {cols}");
            }
            assert_eq!(left.product_work(&right), (rows * inner * cols) as u128);
        }
    }
}
