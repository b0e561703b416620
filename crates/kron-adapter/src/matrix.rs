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
    /// Reads a tensor of two dimensions, or of more if all others are 1, as those of a 1×1 convolution.
    ///
    /// # Errors
    /// Fails on other dimensions, and on a value that is not finite or that float32
    /// does not hold exactly.
    pub fn read(tensors: &Tensors, name: &str) -> Result<Self> {
        let refused = |what: String| Error::data(format!("{}: {} {what}", tensors.path(), text::name(name)));
        let shape = &tensors.info(name)?.shape;
        let &[rows, cols] = without_ones(shape) else {
            return Err(refused(format!(
                "is {shape:?}, but a factor of a linear layer has 2 dimensions; convolutions are not supported, except 1×1"
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

/// Returns the first two dimensions where all others are 1, and else all.
///
/// A 1×1 convolution is a linear layer, and its weight of [out, in, 1, 1] has the same bytes.
pub fn without_ones(shape: &[usize]) -> &[usize] {
    match shape.split_at_checked(2) {
        Some((matrix, rest)) if rest.iter().all(|side| *side == 1) => matrix,
        _ => shape,
    }
}

/// Returns the note on factors of 1×1 convolutions among these tensors.
pub fn pointwise(tensors: &Tensors, names: &[String]) -> Option<String> {
    let has_more = |name: &&String| tensors.info(name).is_ok_and(|info| info.shape.len() > 2);
    let first = text::first_and_more(names.iter().filter(has_more).map(|name| text::name(name)))?;
    Some(format!("1×1 convolutions are taken as the linear layers that they are: {first}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trailing_ones_are_dropped() {
        for (shape, want) in [
            (&[3, 4][..], &[3, 4][..]),
            (&[3, 4, 1, 1], &[3, 4]),
            (&[3, 1], &[3, 1]),
            (&[3, 4, 1, 3], &[3, 4, 1, 3]),
            (&[1, 1, 3], &[1, 1, 3]),
            (&[3], &[3]),
            (&[], &[]),
        ] {
            assert_eq!(without_ones(shape), want);
        }
    }

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
